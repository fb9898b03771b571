"""Pipelines in SLURM's queue: `status` and `cancel` with scripts in place of its commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.pipeline.submission import Submission
from mvlm.config.shipped import find_file
from tests.cluster.pipeline_fixture import SHARDS, write_images

BEHIND = """
[[step]]
name = "behind"
kind = "command"
command = ["ls", "{folder}/shards"]
"""
TRAINING = """
[[step]]
name = "train"
kind = "train"
run = "{folder}/run.toml"
deepspeed = "{folder}/zero.json"
settings = {{ data.train = "{folder}/shards" }}
writes = ["{folder}/run"]
"""
Queue = Callable[..., list[str]]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Puts lines into the queue, and returns the requests made about jobs so far."""
    asked = tmp_path / "asked"
    texts = {
        "sbatch": f"ls {tmp_path}/*.got 2>/dev/null | wc -l; cp $2 {tmp_path}/$$.got",
        "squeue": f"cat {tmp_path}/queue",
        "scancel": f'echo "$0" "$@" | sed "s,.*/,," >>{asked}',
        "scontrol": "true",
    }
    for name, text in texts.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    asked.touch()

    def put(*lines: str) -> list[str]:
        (tmp_path / "queue").write_text("\n".join([*lines, ""]))
        return asked.read_text().splitlines()

    return put


@pytest.fixture
def submitted(tmp_path: Path, queue: Queue) -> Path:
    """A pipeline whose parts are job 0, joined by 1, with a step behind them, 2."""
    write_images(tmp_path / "in")
    path = tmp_path / "small.toml"
    path.write_text((SHARDS + BEHIND).format(folder=tmp_path))
    assert main(["submit", str(path), "--on", "slurm"]) == 0
    return path


def test_the_joining_job_is_cancelled_before_the_parts_are_told_to_end(submitted: Path, queue: Queue) -> None:
    """It would begin as soon as they end, and redo what was cancelled."""
    queue("0_1|RUNNING|n1|None|0:01|1:00", "0_2|PENDING||Resources|0:00|1:00", "1|PENDING||Dependency|0:00|1:00")
    assert main(["cancel", str(submitted)]) == 0
    assert queue() == ["scancel 0_2", "scancel 1", "scancel --batch --signal=USR1 0_1"]


def test_a_step_with_its_own_dependency_waits_for_its_inputs_too(
    submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, waits in {
        "shards": ["singleton", "singleton,afterany:ARRAY", "afterok:shards"],
        "behind": ["afterany:ARRAY", "singleton,afterok:shards"],
    }.items():
        capsys.readouterr()
        assert main(["render", str(submitted), "--on", "slurm", f'{override}.sbatch=["--dependency=singleton"]']) == 0
        assert re.findall("--dependency=(.*)", capsys.readouterr().out) == waits


def test_a_step_without_a_recorded_end_has_failed_once_it_leaves_the_queue(
    submitted: Path, queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For instance one that was killed, while its dependents stay in the queue for good."""
    key = json.loads((tmp_path / "logs/pipeline.json").read_text())["queued"]["shards"]["key"]
    attempt = {"number": 1, "started": 0.0}
    record = {
        "name": "shards",
        "backend": "slurm",
        "run_folder": "",
        "host": "n1",
        "job_id": key,
        "attempts": [attempt],
    }
    (tmp_path / "logs/shards/job.json").write_text(json.dumps(record))
    queue("2|PENDING||DependencyNeverSatisfied|0:00|1:00")
    capsys.readouterr()
    assert main(["status", "--json", str(submitted)]) == 0
    states = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["steps"]}
    assert states == {"shards": "failed", "behind": "failed"}


FILES = {"run.toml": "mvlm/configs/tiny.toml", "zero.json": "ds_configs/cpu.json"}


def submit_then_edit(path: Path) -> tuple[str, str]:
    """Submit a training whose files lie beside it, edit these, and check that its script names unedited copies."""
    for name, shipped in FILES.items():
        (path.parent / name).write_text(find_file(shipped, Path(shipped).parent.name).read_text())
    assert main(["submit", str(path), "--on", "slurm"]) == 0
    for name in FILES:
        (path.parent / name).write_text("edited")
    [script] = [text for file in path.parent.glob("*.got") if "mvlm train" in (text := file.read_text())]
    found = re.search(r"mvlm train (\S+)\n +--deepspeed_config (\S+)\n", script)
    assert found
    for kept, shipped in zip(found.groups(), FILES.values(), strict=True):
        assert Path(kept).read_text() == find_file(shipped, Path(shipped).parent.name).read_text()
    return found[1], found[2]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares each submission `mvlm check`, which takes six seconds."""
    for module in ("cluster.__main__", "cluster.pipeline.check"):
        monkeypatch.setattr(f"{module}.check_run", lambda *_, **__: None)


@pytest.mark.usefixtures("unchecked")
def test_a_job_runs_with_the_files_it_was_submitted_with_even_if_they_are_edited(queue: Queue, tmp_path: Path) -> None:
    queue()
    files = f'run = "{tmp_path}/run.toml"\ndeepspeed = "{tmp_path}/zero.json"\n'
    path = tmp_path / "job.toml"
    path.write_text(f'[job]\nname = "small"\nlogs = "{tmp_path}/logs"\n{files}')
    submit_then_edit(path)


@pytest.mark.usefixtures("unchecked")
def test_a_step_trains_with_the_files_it_was_submitted_with_even_if_they_are_edited(
    queue: Queue, tmp_path: Path
) -> None:
    """Its key is derived from them: edited and restored, they would vouch for a model trained with others."""
    queue()
    write_images(tmp_path / "in")
    path = tmp_path / "small.toml"
    path.write_text((SHARDS + TRAINING).format(folder=tmp_path))
    run, deepspeed = submit_then_edit(path)
    step = Submission.load(tmp_path / "logs").graph().pipeline.steps["train"]
    assert (step.run, step.deepspeed) == (run, deepspeed)


@pytest.mark.usefixtures("unchecked")
def test_a_step_that_stays_in_the_queue_in_a_rerun_of_another_keeps_its_attempts(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue()
    write_images(tmp_path / "in")
    path = tmp_path / "small.toml"
    path.write_text((SHARDS + BEHIND + TRAINING).format(folder=tmp_path))
    submit_then_edit(path)
    for name, shipped in FILES.items():
        (tmp_path / name).write_text(find_file(shipped, Path(shipped).parent.name).read_text())
    attempt = tmp_path / "logs/train/job/attempt-001"
    attempt.mkdir()
    (attempt / "started").write_text("1")
    queue("1|RUNNING|n1|None|0:01|1:00", "3|RUNNING|n1|None|0:01|1:00")
    assert main(["rerun", str(path), "behind"]) == 0
    (attempt / "exit_code").write_text("0")
    queue()
    capsys.readouterr()
    main(["status", "--json", str(path)])
    states = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["steps"]}
    assert states["train"] == "done"
