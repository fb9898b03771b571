"""The status of run folders in every state, from files as the ranks write them."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mvlm.__main__ import main
from mvlm.training.health.heartbeat import HEARTBEATS, QUIET_AFTER, Heartbeat
from mvlm.watch.liveness import GONE_AFTER
from mvlm.watch.screen import screen, span
from mvlm.watch.status import Watcher

STEPS, PERIOD_S = 100, 60.0


@dataclass
class Job:
    """A run folder of two ranks on another host, and a clock."""

    folder: Path
    now: float = 1e9

    def describe(self) -> None:
        self.folder.mkdir(exist_ok=True)
        facts = {"world": 2, "hosts": ["far", "far"], "steps": STEPS, "zero_stage": 1, "device": "cuda:0"}
        config = {"train": {"global_batch": 64, "hang_minutes": 15.0}}
        (self.folder / "run.json").write_text(json.dumps(facts | {"config": config}))

    def attempt(self, number: int) -> None:
        (self.folder / "attempts").mkdir(exist_ok=True)
        (self.folder / f"attempts/{number:04d}.json").write_text(json.dumps({"at": self.now}))

    def log(self, step: int, **more: Any) -> None:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0, "pairs_per_s": 32.0} | more) + "\n")

    def beat(self, rank: int, attempt: int = 1, **more: Any) -> None:
        facts = {"host": "far", "pid": 1, "step": 7, "doing": "computing the update", "marks": 9, "still_s": 1.0}
        (self.folder / HEARTBEATS).mkdir(exist_ok=True)
        flags = {"stuck": False, "exchanging": False, "ends": False}
        Heartbeat(**({"attempt": attempt, "rank": rank, "time": self.now} | facts | flags | more)).write(
            self.folder / HEARTBEATS
        )

    def save(self, step: int) -> None:
        folder = self.folder / f"checkpoints/step_{step:08d}"
        folder.mkdir(parents=True)
        os.utime(folder, (self.now, self.now))
        (self.folder / "checkpoints/latest").write_text(folder.name)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "run")


@pytest.fixture
def running(job: Job) -> Job:
    job.describe()
    job.attempt(1)
    job.save(0)
    job.log(20)
    for rank in range(2):
        job.beat(rank)
    return job


def watcher(job: Job) -> Watcher:
    found = Watcher(job.folder, clock=lambda: job.now)
    found._heartbeats._monotonic = lambda: job.now
    return found


def test_a_run_is_waited_for_until_its_folder_and_then_its_ranks_appear(job: Job) -> None:
    watch = watcher(job)
    assert watch.look().state == "waiting"
    job.describe()
    assert watch.look().state == "starting"
    job.attempt(1)
    assert watch.look().state == "starting"
    job.beat(0)
    assert watch.look().state == "running"


def test_the_remaining_time_of_a_running_job_is_estimated(running: Job) -> None:
    running.now += 30.0
    status = watcher(running).look()
    assert (status.state, status.step, status.steps, status.attempt) == ("running", 20, STEPS, 1)
    assert status.seconds_left == 80 * 64 / 32.0
    assert (status.checkpoint, status.checkpoint_age_s) == (0, 30.0)
    assert (status.seen, status.quiet, status.still_s) == (2, (), 30.0)


def test_new_heartbeats_are_signs_of_life_whatever_their_clock_says(running: Job) -> None:
    late = 3600.0  # seconds that the host's clock is behind
    watch = watcher(running)
    for _ in range(3):
        running.now += PERIOD_S
        for rank in range(2):
            running.beat(rank, time=running.now - late)
        status = watch.look()
    assert (status.state, status.still_s) == ("running", 0.0)
    running.now += QUIET_AFTER * PERIOD_S + 1
    assert watch.look().state == "dead"


def test_a_heartbeat_from_the_future_is_no_sign_of_life_until_another_comes(running: Job) -> None:
    """Either that host's clock is ahead, or this one was set back after the run ended."""
    early = 3600.0
    for rank in range(2):
        running.beat(rank, time=running.now + early)
    watch = watcher(running)
    status = watch.look()
    assert status.state == "running"
    assert "or it has ended: the heartbeats' time is 60 min ahead of this machine's clock" in status.note
    running.now += PERIOD_S
    for rank in range(2):
        running.beat(rank, time=running.now + early)
    assert watch.look().note == "computing the update"


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen("true")
    process.wait()
    return process.pid


def test_a_process_gone_from_this_host_is_dead_whatever_the_time_of_its_heartbeats(running: Job, gone: int) -> None:
    for rank in range(2):
        running.beat(rank, host=socket.gethostname(), pid=gone, time=running.now + 3600.0)
    assert watcher(running).look().state == "dead"


def test_a_silent_job_is_dead_unless_it_saved_its_last_step(running: Job) -> None:
    running.save(15)
    running.now += QUIET_AFTER * PERIOD_S + 1
    status = watcher(running).look()
    assert (status.state, status.quiet) == ("dead", (0, 1))
    assert status.note == (
        "no rank has sent a heartbeat for 5 min; 5 steps will be repeated when the same command is given"
    )
    assert status.seconds_left is None
    running.save(20)
    assert watcher(running).look().state == "stopped"


def test_a_job_without_its_last_evaluation_is_not_done(running: Job) -> None:
    running.log(STEPS)
    running.save(STEPS)
    state = running.folder / f"checkpoints/step_{STEPS:08d}/state.json"
    state.write_text(json.dumps({"unevaluated": True}))
    running.now += QUIET_AFTER * PERIOD_S + 1
    assert watcher(running).look().state == "stopped"
    state.write_text(json.dumps({"unevaluated": False}))
    assert watcher(running).look().state == "done"


def test_a_process_gone_from_this_host_is_dead_sooner(running: Job, gone: int) -> None:
    for rank in range(2):
        running.beat(rank, host=socket.gethostname(), pid=gone)
    watch = watcher(running)
    running.now += PERIOD_S
    assert watch.look().state == "running"  # processes in a container with its host's name look the same
    running.now += GONE_AFTER * PERIOD_S
    assert watch.look().state == "dead"
    running.beat(1, host=socket.gethostname(), pid=os.getpid())
    status = watch.look()
    assert (status.state, status.quiet) == ("hanging", (0,))


def test_the_rank_that_the_others_wait_for_is_named(running: Job) -> None:
    running.beat(0, marks=8, stuck=True, still_s=900.0, doing="waiting for data")
    running.beat(1, marks=9, stuck=True, still_s=900.0, exchanging=True)
    status = watcher(running).look()
    assert status.state == "hanging"
    assert status.note == 'rank 0 on far has been in "waiting for data" at step 7 for 15 min'


def test_the_next_attempt_is_judged_anew(running: Job) -> None:
    running.now += QUIET_AFTER * PERIOD_S + 1
    watch = watcher(running)
    assert watch.look().state == "dead"
    running.attempt(2)
    assert watch.look().state == "starting"
    running.beat(0, attempt=2)
    running.beat(1, attempt=2)
    assert watch.look().state == "running"
    running.attempt(3)
    running.now += QUIET_AFTER * PERIOD_S + 1
    status = watch.look()
    assert (status.state, status.note) == ("dead", "attempt 3 began 5 min ago and has sent no heartbeat")


def test_a_run_is_done_when_its_last_step_is_saved(running: Job) -> None:
    running.log(STEPS)
    watch = watcher(running)
    assert watch.look().state == "running"
    running.save(STEPS)
    assert watch.look().state == "done"


def test_a_run_with_an_appended_stage_is_not_done_before_that_stage_ends(running: Job) -> None:
    running.log(STEPS)
    running.save(STEPS)
    assert watcher(running).look().state == "done"
    (running.folder / "stages.toml").write_text("[run]\n[[stage]]\n[[stage]]\ntrain.steps = 5\n")
    assert watcher(running).look().state == "running"


def test_files_in_the_middle_of_a_write_are_ignored(running: Job) -> None:
    (running.folder / "run.json").write_text('{"world": 2, "st')
    (running.folder / "heartbeat/rank-00001.json").write_text("")
    (running.folder / "checkpoints/latest").write_text("")
    status = watcher(running).look()
    assert (status.state, status.seen, status.checkpoint, status.steps) == ("running", 1, 0, None)


def test_evaluations_of_a_separate_job_survive_edited_metrics(running: Job) -> None:
    (running.folder / "eval.jsonl").write_text('{"step": 10, "eval/mean_recall": 0.5}\n')
    watch = watcher(running)
    assert watch.look().evaluation["step"] == 10
    (running.folder / "metrics.jsonl").write_text("")
    assert watch.look().evaluation["step"] == 10


def test_the_screen_shows_everything(running: Job) -> None:
    watch = watcher(running)
    for step in range(21, 41):
        parts = {"image": 1.0, "itm": 0.5, "itm_accuracy": 0.8, "mfu": 0.412, "data_wait": 0.01, "memory_gb": 61.25}
        slow = {"slowest_rank": 1, "data_wait_s_min": 0.001, "data_wait_s_max": 0.25}
        found = {"grad_norm": None, "lr": 3e-4, "encoder_lr": 1e-5, "bad_images": 3, "skipped": 2}
        running.log(step, **(parts | slow | found | {"loss": 100.0 / step}))
    with open(running.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "eval/mean_recall": 0.612}\n')
    running.save(30)
    running.now += 240.0
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(screen(watch.look(), watch.history))
    text = console.export_text()
    for words in (
        "running  ·  attempt 1  ·  2 ranks on 1 host",
        "step 40 of 100",
        "40.0%",
        "2 min left",
        "▁██▇▇▇▆",
        "80.0% right",
        "32 pairs/s  ·  MFU 41.2%",
        "61.2 GB",
        "3.00e-04",
        "norm not finite",
        "3 images  ·  2 batches",
        "step 30, 4 min old",
        "slowest rank 1; data 0.001 to 0.250 s",
        "step 40: mean recall 61.2%",
    ):
        assert words in text, words


def test_spans_are_short() -> None:
    assert [span(s) for s in (3.2, 600, 7200, 180_000)] == ["3 s", "10 min", "2 h 0 min", "2 d 2 h"]


def test_the_command_reports_once_and_refuses_a_missing_folder(
    running: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    running.now = time.time()
    running.beat(0)
    running.beat(1)
    assert main(["watch", str(running.folder), "--once", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["state"], printed["step"], printed["metrics"]["loss"]) == ("running", 20, 1.0)
    assert main(["watch", str(running.folder)]) == 0  # ends at once, since the output is no terminal
    assert "step 20 of 100" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "nothing"), "--once"]) == 1
    assert "There is no run folder" in capsys.readouterr().err


def test_json_is_printed_until_the_run_is_done(
    running: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running.now = time.time()

    def grow(seconds: float) -> None:
        running.log(STEPS)
        running.save(STEPS)

    monkeypatch.setattr(time, "sleep", grow)
    assert main(["watch", str(running.folder), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["step"], line["state"]) for line in lines][-1] == (STEPS, "done")
    assert len(lines) == 2
