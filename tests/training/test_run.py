"""Whole runs under the launchers: what they leave behind, and that interruptions change no loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm.config.load import load_config
from tests.conftest import ROOT, TINY, mvlm_command, run_command
from tests.ranks import mvlm, run_ranks
from tests.training.conftest import TOML, TrainHere, losses_by_step, read_metrics

STEPS, EVERY = 30, 10


def words(scenes: Path, run: Path, *overrides: str) -> list[str]:
    given = [f"data.train={scenes}/train", f"run.dir={run}", f"train.steps={STEPS}", f"checkpoint.every={EVERY}"]
    json_file = str(ROOT / "ds_configs/cpu.json")
    return ["train", TOML, "--deepspeed_config", json_file, *TINY, *given, *overrides]


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two ranks: the third one launched is not used, since 16 pairs are only 4 ITM groups."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = run_command(mvlm_command(*words(scenes, run), ranks=3))
    assert done.returncode == 0, done.stdout + done.stderr
    (run.parent / "stdout").write_text(done.stdout)
    return run


class Launched:
    """A run in its own process group, to be signalled while it trains."""

    def __init__(self, command: list[str], run: Path) -> None:
        self.run = run
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **output)

    def wait_for_step(self, step: int) -> None:
        self._wait_until(lambda: self.step() >= step)

    def wait_for_checkpoint(self, name: str) -> None:
        self._wait_until(lambda: (self.run / "checkpoints/latest").read_text() == name)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 400
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.005)

    def step(self) -> int:
        """The last step that has been logged, 0 before the first."""
        lines = read_metrics(self.run) if (self.run / "metrics.jsonl").exists() else []
        return lines[-1]["step"] if lines else 0

    def end(self) -> tuple[int, str]:
        output = self.process.communicate(timeout=400)[0]
        return self.process.returncode, output


@pytest.mark.campaign
def test_a_run_that_is_interrupted_twice_has_the_losses_of_one_that_was_not(
    scenes: Path, whole: Path, tmp_path: Path
) -> None:
    """First by a signal to torchrun, which passes it on, then by a kill of all processes under DeepSpeed's launcher."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mvlm"]
    command = mvlm_command(*words(scenes, run), ranks=2)

    launched = Launched([*torchrun, *words(scenes, run)], run)
    launched.wait_for_step(4)
    os.kill(launched.process.pid, signal.SIGTERM)
    _, output = launched.end()  # the exit code is torchrun's own
    assert "Stopped by a signal" in output
    first = (run / "checkpoints/latest").read_text()
    stopped = read_metrics(run)[-1]["step"]
    assert 4 <= stopped < STEPS - EVERY
    assert first == f"step_{stopped:08d}"
    saved = (stopped // EVERY + 1) * EVERY

    launched = Launched(command, run)
    launched.wait_for_step(saved + 4)
    launched.wait_for_checkpoint(f"step_{saved:08d}")
    os.killpg(launched.process.pid, signal.SIGKILL)
    assert launched.end()[0] == -signal.SIGKILL
    assert (run / "checkpoints/latest").read_text() == f"step_{saved:08d}"
    killed = launched.step()
    assert killed < STEPS

    done = run_command(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Resuming step_{saved:08d}" in done.stderr
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == [*range(1, killed + 1), *range(saved + 1, STEPS + 1)]  # metrics are appended, never rewritten
    expected = losses_by_step(whole)
    for line in read_metrics(run):
        assert line["loss"] == expected[line["step"]][0], line["step"]
    assert losses_by_step(run) == expected


@pytest.mark.parametrize("stage", [0, 3])
def test_another_layout_resumes_its_checkpoint(whole: Path, tmp_path: Path, train_here: TrainHere, stage: int) -> None:
    at = STEPS - EVERY
    resume = f"checkpoint.resume={whole}/checkpoints/step_{at:08d}"
    deepspeed = {"zero_optimization": {"stage": stage}}
    assert train_here(tmp_path / "run", f"train.steps={STEPS}", resume, deepspeed=deepspeed) == 0
    found, expected = losses_by_step(tmp_path / "run"), losses_by_step(whole)
    assert list(found) == list(range(at + 1, STEPS + 1))
    for step, values in found.items():
        assert values == pytest.approx(expected[step], rel=1e-4), step
    differences = [abs(found[step][0] - expected[step - 1][0]) for step in found if step > at + 1]
    assert min(differences) > 1e-4  # else samples in another order would go unnoticed


def test_what_a_run_leaves_behind(whole: Path, scenes: Path) -> None:
    facts = json.loads((whole / "run.json").read_text())
    assert (facts["world"], facts["micro_batch"], facts["accumulation"], facts["zero_stage"]) == (2, 8, 1, 1)
    assert len(facts["hosts"]) == 2
    assert facts["steps"] == STEPS
    assert facts["config"]["data"]["train"] == [f"{scenes}/train"]
    assert {"mvlm", "torch", "deepspeed"} <= facts["versions"].keys()
    config = load_config(whole / "config.toml")
    assert config == load_config(TOML, words(scenes, whole)[4:])
    assert json.loads((whole / "deepspeed.json").read_text())["train_batch_size"] == 16
    for name in ("tokenizer/tokenizer.json", "text_encoder/config.json"):
        assert json.loads((whole / name).read_text())
    lines = read_metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["loss"] == pytest.approx(line["image"] + line["text"] + line["itc"] + line["itm"])
        assert line["pairs_per_s"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["grad_norm"] > 0
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    found = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert found == ["latest", f"step_{STEPS - EVERY:08d}", f"step_{STEPS:08d}"]  # keep = 2
    assert (whole / "checkpoints/latest").read_text() == f"step_{STEPS:08d}"


def test_ranks_that_the_batch_does_not_need_are_left_out(whole: Path) -> None:
    told = (whole.parent / "stdout").read_text()
    assert told.count("train.global_batch 16 uses 2 of the 3 ranks launched") == 1
    assert json.loads((whole / "run.json").read_text())["world"] == 2


def test_a_resumed_run_has_the_ranks_that_its_own_batch_needs(
    scenes: Path, tmp_path: Path, train_here: TrainHere
) -> None:
    """Its batch of 9 pairs was an override that is not repeated; the default of 512 would use both ranks."""
    run, toml = tmp_path / "run", tmp_path / "run.toml"
    assert train_here(run, "train.global_batch=9", "train.steps=1") == 0
    toml.write_text(Path(TOML).read_text().replace("global_batch = 64\n", ""))
    given = [word for word in words(scenes, run, "train.steps=2")[2:] if not word.startswith("train.global_batch")]
    done = run_ranks(mvlm, "train", str(toml), *given, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train.global_batch 9 uses 1 of the 2 ranks launched") == 1
    assert read_metrics(run)[-1]["step"] == 2


def test_bf16_trains_as_fp32_does_within_its_precision(whole: Path, tmp_path: Path, train_here: TrainHere) -> None:
    deepspeed = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    assert train_here(tmp_path / "run", f"train.steps={STEPS}", deepspeed=deepspeed) == 0
    found, expected = losses_by_step(tmp_path / "run"), losses_by_step(whole)
    assert found.keys() == expected.keys()
    assert found[1][0] != expected[1][0]  # else it did not train in bf16
    for step, values in found.items():
        assert values[0] == pytest.approx(expected[step][0], rel=0.03), step


def test_multiples_of_keep_every_are_saved_between_those_of_every(tmp_path: Path, train_here: TrainHere) -> None:
    saving = ["checkpoint.every=3", "checkpoint.keep_every=2", "checkpoint.keep=1", "train.steps=5"]
    assert train_here(tmp_path, *saving) == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == [
        f"step_{step:08d}" for step in (0, 2, 4, 5)
    ]
