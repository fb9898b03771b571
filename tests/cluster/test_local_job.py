"""Real jobs on this machine: preempted, with a launcher killed, and finished. Ranks are found by psutil."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.logs import launcher_log, rank_log
from tests.cluster.conftest import JOB
from tests.conftest import ROOT, TINY

OF_ANOTHER_LAUNCHER = {"RANK": "7", "LOCAL_RANK": "7", "WORLD_SIZE": "9", "LOCAL_SIZE": "5", "MASTER_PORT": "1"}
STEPS = 50
pytestmark = pytest.mark.campaign  # three attempts of two ranks; jobs of SLURM and Ray go the same ways

PATIENCE = 600  # seconds, for a machine with other things to do


class Story:
    """One job through three attempts."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.job, self.logs, self.run = folder / "job.toml", folder / "logs", folder / "run"
        self.job.write_text(JOB.format(logs=self.logs))
        self.words = [f"run.dir={self.run}", f"data.train={shards}", *TINY]

    def start(self, steps: int, ranks: int, output: str) -> subprocess.Popen[bytes]:
        words = [*cluster_command("submit", self.job, "--on", "local"), *self.words, f"train.steps={steps}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | OF_ANOTHER_LAUNCHER
        with open(self.job.parent / output, "wb") as out:
            words.append(f"job.processes_per_node={ranks}")
            return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=out)

    def output(self, name: str) -> str:
        return (self.job.parent / name).read_text()

    def steps(self) -> list[int]:
        path = self.run / "metrics.jsonl"
        return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, submitted: subprocess.Popen[bytes], attempt: int) -> None:
        """Wait until this attempt has made a step."""
        log = rank_log(self.logs, attempt, 0)
        deadline = time.monotonic() + PATIENCE
        while not log.exists() or not re.search(r"^step \d", log.read_text(), re.MULTILINE):
            assert submitted.poll() is None and time.monotonic() < deadline, log.exists() and log.read_text()
            time.sleep(0.05)

    def attempts(self) -> list[int | None]:
        return [attempt["exit_code"] for attempt in json.loads((self.logs / "job.json").read_text())["attempts"]]


def cluster_command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cluster", *map(str, words)]


def ask(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(cluster_command(*words), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def below(submitted: subprocess.Popen[bytes], word: str) -> list[psutil.Process]:
    """Descendants of the submit command that have `word` among their arguments."""
    children = psutil.Process(submitted.pid).children(recursive=True)
    return [child for child in children if word in child.cmdline()]


@pytest.fixture(scope="module")
def story(scenes, tmp_path_factory):
    story = Story(tmp_path_factory.mktemp("job"), scenes / "train")
    submitted = story.start(STEPS, ranks=2, output="submitted")
    try:
        story.wait_for_step(submitted, 1)
        below(submitted, "--local_rank=1")[0].send_signal(signal.SIGTERM)
        story.wait_for_step(submitted, 2)
        story.status_while_running, started = ask("status", story.job), below(submitted, "mvlm")
        below(submitted, "deepspeed.launcher.launch")[0].kill()
        story.rival_code = story.start(1, ranks=1, output="rival").wait(PATIENCE)
        with subprocess.Popen(cluster_command("logs", "-f", story.job), cwd=ROOT, stdout=-1, text=True) as follower:
            story.followed = follower.communicate(timeout=PATIENCE)[0]
        story.code = submitted.wait(PATIENCE)
        story.left = [process for process in started if process.is_running()]
    finally:
        if submitted.poll() is None:
            ask("cancel", story.job)
    return story


def test_a_preempted_job_is_started_again_and_finishes(story):
    assert story.code == 0 and story.attempts() == [75, 70, 0], story.output("submitted")
    assert "attempt 1 was preempted, everything saved; starting again" in story.output("submitted")


def test_ranks_whose_launcher_was_killed_save_and_end(story):
    assert "the launcher has died; its ranks" in story.output("submitted")
    words = rank_log(story.logs, 2, 0).read_text()
    assert re.search(r"Stopped (by a signal|because the launcher has died) at step \d+, saved", words)
    assert not story.left


def test_no_step_is_lost_or_made_twice(story):
    assert story.steps() == list(range(1, STEPS + 1))


def test_a_second_submission_of_a_running_job_is_refused(story):
    assert story.rival_code == 1 and "A job is running" in story.output("rival")


def test_status_shows_the_attempts_and_the_last_step(story):
    running, after = story.status_while_running.stdout, ask("status", story.logs.parent).stdout
    assert "small: running, attempt 2, pid" in running and "ranks alive: 2" in running
    assert "attempt 1 was preempted" in running and re.search(r"step \d+  loss \d+\.\d{4}", running)
    assert "not running, the last attempt is done" in after and f"step {STEPS} " in after


def test_status_as_json(story):
    told = json.loads(ask("status", story.logs.parent, "--json").stdout)
    assert (told["name"], told["backend"], told["active"]) == ("small", "local", False)
    assert [attempt["exit_code"] for attempt in told["attempts"]] == [75, 70, 0]
    assert told["metrics"]["step"] == STEPS


def test_logs_are_kept_by_attempt_and_rank_and_followed_to_the_end(story):
    kept = sorted(str(path.relative_to(story.logs)) for path in story.logs.glob("attempt-*/*"))
    names = ("launcher.log", "rank-00000.log", "rank-00001.log")
    assert kept == [f"attempt-{number:03d}/{name}" for number in (1, 2, 3) for name in names]
    files = [
        (prefix, path)
        for number in (1, 2, 3)
        for prefix, path in (
            ("", launcher_log(story.logs, number)),
            ("0: ", rank_log(story.logs, number, 0)),
            ("1: ", rank_log(story.logs, number, 1)),
        )
    ]
    lines = sorted(prefix + line for prefix, path in files for line in path.read_text().splitlines())
    printed = ask("logs", story.job).stdout
    assert printed.count("==>") == story.followed.count("==>") == 3
    for text in (printed, story.followed, story.output("submitted")):
        assert sorted(re.sub("(cluster: |==> ).*\n", "", text).splitlines()) == lines
