"""What becomes of a run when its checkpoint, its disk or its configuration is not what it should be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvlm.errors import UserError
from mvlm.model.weights import find_checkpoint
from tests.conftest import ROOT, TINY
from tests.train.conftest import TOML, TrainHere, losses_by_step, read_metrics

STEP = "checkpoints/step_00000004"


@pytest.fixture(scope="module")
def sound(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> Path:
    """A run of six updates with a checkpoint after the fourth."""
    from mvlm.config import load_config
    from mvlm.train.loop import train

    run = tmp_path_factory.mktemp("sound") / "run"
    (run.parent / "ds.json").write_text("{}")
    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=6", "checkpoint.every=4"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    assert train(load_config(TOML, words), (str(run.parent / "ds.json"), TOML)) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return run


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """A copy of that run as it was after the fourth update."""
    shutil.copytree(sound, tmp_path / "run")
    (tmp_path / "run/checkpoints/latest").write_text("step_00000004")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(train_here: TrainHere, run: Path, *overrides: str) -> str:
    before = content(run)
    with pytest.raises(UserError) as error:
        train_here(run, *overrides)
    assert content(run) == before  # the run looks as it did
    assert "\n" not in str(error.value)
    return str(error.value)


def test_going_on_repeats_the_losses(sound: Path, copy: Path, train_here: TrainHere) -> None:
    assert train_here(copy) == 0
    steps = [line["step"] for line in read_metrics(copy)]
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6]
    assert losses_by_step(copy) == losses_by_step(sound)


def test_a_finished_run_started_again_does_nothing(sound: Path, train_here: TrainHere) -> None:
    before = (sound / "metrics.jsonl").read_bytes()
    assert train_here(sound) == 0
    assert (sound / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["weights-00000-of-00001.safetensors", "moments-00000-of-00001.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "grown"])
def test_a_damaged_file_is_named(copy: Path, train_here: TrainHere, name: str, damage: str) -> None:
    path = copy / STEP / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[-1000] ^= 0x40  # still a file of the right length that safetensors reads
        path.write_bytes(data)
    elif damage == "grown":
        path.write_bytes(data + b"more")
    else:
        path.unlink()
    message = refused(train_here, copy)
    assert name in message
    assert STEP in message


@pytest.mark.parametrize("name", ["state.json", "index.json"])
@pytest.mark.parametrize("text", ["", '{"step": 4', "[]", '{"files": [{}], "step": 1}'])
def test_a_damaged_description_is_an_error_of_the_checkpoint(
    copy: Path, train_here: TrainHere, name: str, text: str
) -> None:
    (copy / STEP / name).write_text(text)
    assert STEP in refused(train_here, copy)


def test_latest_that_names_nothing_is_an_error(copy: Path, train_here: TrainHere) -> None:
    (copy / "checkpoints/latest").write_text("step_00000099")
    assert "step_00000099" in refused(train_here, copy)


def test_another_seed_cannot_go_on(copy: Path, train_here: TrainHere) -> None:
    message = refused(train_here, copy, "run.seed=5")
    assert "run.seed 0" in message and "5" in message


def test_other_shards_cannot_go_on(copy: Path, scenes: Path, train_here: TrainHere) -> None:
    message = refused(train_here, copy, f"data.train={scenes}/eval")
    assert "data.train" in message and "fingerprint" in message


@pytest.mark.parametrize("override", ["model.contrastive_width=8", "model.cross_depth=2"])
def test_another_model_cannot_go_on(copy: Path, train_here: TrainHere, override: str) -> None:
    assert "TOML" in refused(train_here, copy, override)


def test_weights_alone_start_a_new_run(sound: Path, scenes: Path, tmp_path: Path, train_here: TrainHere) -> None:
    """Weights go over, moments and position do not: other shards and another seed are no mistake then."""
    init = f"checkpoint.init={sound}"
    overrides = ["run.seed=5", f"data.train={scenes}/eval", "optim.lr=1e-9", "optim.encoder_lr=1e-9"]
    assert train_here(tmp_path / "warm", init, *overrides) == 0
    assert train_here(tmp_path / "cold", *overrides) == 0
    warm, cold = (losses_by_step(tmp_path / name)[1] for name in ("warm", "cold"))
    assert warm[0] < cold[0] - 0.1
    assert [line["step"] for line in read_metrics(tmp_path / "warm")] == [1, 2, 3, 4, 5, 6]


def test_only_the_newest_are_kept(tmp_path: Path, train_here: TrainHere) -> None:
    assert train_here(tmp_path / "run", "checkpoint.every=1", "checkpoint.keep=3") == 0
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["latest", "step_00000004", "step_00000005", "step_00000006"]


KILLED = """
import os, signal, sys
from mvlm.__main__ import main
from mvlm.train import checkpoint
at, calls = {at!r}, []
name = {name!r}
owner = os if hasattr(os, name) else checkpoint
real = getattr(owner, name)

def killed_here(*arguments):
    if str(arguments[0]).find("step_00000004") >= 0 or str(arguments[0]).find("latest") >= 0:
        calls.append(arguments)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

setattr(owner, name, killed_here)
sys.exit(main(sys.argv[1:]))
"""
"""A run that ends without notice at one call of one function, as far as the disk is concerned a power cut there."""


@pytest.mark.parametrize(
    ("name", "at"),
    [("_write", 2), ("rename", 1), ("write_durably", 4)],
    ids=["between files", "before the rename", "before latest"],
)
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    scenes: Path, tmp_path: Path, name: str, at: int, train_here: TrainHere
) -> None:
    run = tmp_path / "run"
    (tmp_path / "ds.json").write_text("{}")
    given = ["train", TOML, "--deepspeed_config", str(tmp_path / "ds.json"), *TINY, f"data.train={scenes}/train"]
    given += [f"run.dir={run}", "train.steps=6", "checkpoint.every=2"]
    code = KILLED.format(name=name, at=at)
    ended = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert find_checkpoint(run).name == "step_00000002"
    assert (run / STEP).exists() == (name == "write_durably")
    assert train_here(run, "checkpoint.every=2") == 0
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert not list((run / "checkpoints").glob("*.partial"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(small_disk: Path, train_here: TrainHere) -> None:
    """A checkpoint takes 1.8 MB: the second does not fit beside the first."""
    run = small_disk / "run"
    with pytest.raises(UserError, match=r"step_00000004 could not be written .*free some room"):
        train_here(run, "checkpoint.every=2")
    assert find_checkpoint(run).name == "step_00000002"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step_00000002"]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert train_here(run, "checkpoint.every=2") == 0
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 3, 4, 5, 6]


def test_numbers_in_files_read_back_equal(sound: Path) -> None:
    for line in (sound / "metrics.jsonl").read_text().splitlines():
        assert json.dumps(json.loads(line)) == line
    state = json.loads((sound / STEP / "state.json").read_text())
    assert (state["step"], state["samples_seen"], state["seed"]) == (4, 64, 0)
