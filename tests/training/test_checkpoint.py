"""How a run resumes, and what it does if its checkpoint, disk or configuration is not as it should be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.errors import StorageLost, UserError
from mvlm.pretrained.runs import load_run
from mvlm.training.checkpoint import resume as checkpoints
from mvlm.training.fit import run as loop
from tests.conftest import TINY, signals_kept
from tests.ranks import mvlm, run_ranks
from tests.training.conftest import TOML, TrainHere, losses_by_step, read_metrics, train_in

STEP = "checkpoints/step_00000004"


@pytest.fixture(scope="module")
def sound(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> Path:
    """A run of six updates with a checkpoint after the fourth."""
    place = tmp_path_factory.mktemp("sound")
    with signals_kept():
        assert train_in(place, scenes, place / "run", "checkpoint.every=4") == 0
    return place / "run"


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


def test_a_resumed_run_repeats_the_losses(sound: Path, copy: Path, train_here: TrainHere) -> None:
    assert train_here(copy) == 0
    steps = [line["step"] for line in read_metrics(copy)]
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6]
    assert losses_by_step(copy) == losses_by_step(sound)


def test_a_finished_run_started_again_does_nothing(sound: Path, train_here: TrainHere) -> None:
    before = (sound / "metrics.jsonl").read_bytes()
    assert train_here(sound) == 0
    assert (sound / "metrics.jsonl").read_bytes() == before


WEIGHTS_FILE, MOMENTS_FILE = "weights-00000-of-00001.safetensors", "moments-00000-of-00001.safetensors"


def damage_file(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[-1000] ^= 0x40  # the length is right, and safetensors reads it
        path.write_bytes(data)
    elif damage == "grown":
        path.write_bytes(data + b"more")
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [(WEIGHTS_FILE, "missing"), *product((WEIGHTS_FILE, MOMENTS_FILE), ("cut", "flipped", "grown"))],
)
def test_a_damaged_file_is_named(copy: Path, train_here: TrainHere, name: str, damage: str) -> None:
    """There is no older checkpoint to fall back to."""
    damage_file(copy / STEP / name, damage)
    message = refused(train_here, copy)
    assert name in message
    assert STEP in message


@pytest.mark.parametrize(
    ("name", "damage"),
    [(WEIGHTS_FILE, "flipped"), (MOMENTS_FILE, "cut"), ("index.json", "missing"), ("state.json", "other"), ("", "")],
)
def test_a_damaged_latest_gives_way_to_the_one_before(
    sound: Path, tmp_path: Path, train_here: TrainHere, capfd: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    latest = run / "checkpoints/step_00000006"
    if damage == "other":  # readable, but not the state that was written
        (latest / name).write_text((latest / name).read_text().replace('"samples_seen": 96', '"samples_seen": 80'))
    elif damage:
        damage_file(latest / name, damage)
    else:
        shutil.rmtree(latest)
    assert train_here(run) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mvlm: ")]
    assert len(said) == 1 and str(latest) in said[0] and name in said[0] and "resumes from step_00000004" in said[0]
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6, 5, 6]
    assert losses_by_step(run) == losses_by_step(sound)
    aside = ["step_00000006.damaged"] if damage else []
    names = ["latest", "step_00000004", "step_00000006", *aside]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(copy: Path, tmp_path: Path, train_here: TrainHere) -> None:
    """Though an intact one lies beside it: the user named this one."""
    (copy / "checkpoints/latest").write_text("step_00000006")
    damage_file(copy / "checkpoints/step_00000006" / WEIGHTS_FILE, "flipped")
    with pytest.raises(UserError, match=WEIGHTS_FILE):
        train_here(tmp_path / "new", f"checkpoint.resume={copy}")


def test_a_run_resumes_itself_rather_than_what_it_began_with(
    sound: Path, tmp_path: Path, train_here: TrainHere
) -> None:
    """A job that is restarted with the same command must not begin again."""
    words = [f"checkpoint.resume={sound}/checkpoints/step_00000004", "checkpoint.every=1"]
    run = tmp_path / "run"
    assert train_here(run, *words, "train.steps=5") == 0
    assert train_here(run, *words) == 0
    assert [line["step"] for line in read_metrics(run)] == [5, 6]


def test_optimizer_state_may_be_deleted(sound: Path, copy: Path, tmp_path: Path, train_here: TrainHere) -> None:
    """The weights still evaluate and initialise; resuming is refused, though there is an older intact checkpoint."""
    newest = copy / "checkpoints/step_00000006"
    (copy / "checkpoints/latest").write_text(newest.name)
    (newest / MOMENTS_FILE).unlink()
    message = refused(train_here, copy)
    assert "no optimizer moments" in message and "checkpoint.init" in message and "damaged" not in message
    found, expected = (dict(load_run(run).model.named_parameters()) for run in (copy, sound))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert train_here(tmp_path / "warm", f"checkpoint.init={copy}", "train.steps=2") == 0
    assert train_here(tmp_path / "same", f"checkpoint.init={sound}", "train.steps=2") == 0
    assert losses_by_step(tmp_path / "warm") == losses_by_step(tmp_path / "same")
    damage_file(newest / WEIGHTS_FILE, "cut")
    (copy / STEP / MOMENTS_FILE).unlink()  # so no run can fall back to this one
    assert "step_00000006 is damaged" in refused(train_here, copy)


@pytest.mark.parametrize("name", ["state.json", "index.json"])
@pytest.mark.parametrize("text", ["", '{"step": 4', "[]", '{"files": [{}], "step": 1}'])
def test_a_damaged_description_is_an_error_of_the_checkpoint(
    copy: Path, train_here: TrainHere, name: str, text: str
) -> None:
    (copy / STEP / name).write_text(text)
    assert STEP in refused(train_here, copy)


def test_a_run_without_latest_resumes_and_keeps_intact_checkpoints(
    copy: Path, train_here: TrainHere, capfd: pytest.CaptureFixture[str]
) -> None:
    """It once began from scratch and deleted both."""
    before = content(copy / STEP)
    (copy / "checkpoints/latest").unlink()
    assert train_here(copy) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mvlm: ")]
    assert said == [
        f"mvlm: {copy}/checkpoints/latest is missing: the run resumes from step_00000006, the newest whole checkpoint."
    ]
    assert [line["step"] for line in read_metrics(copy)] == [1, 2, 3, 4, 5, 6]
    assert content(copy / STEP) == before
    assert (copy / "checkpoints/latest").read_text() == "step_00000006"


def test_a_run_whose_checkpoints_are_all_lost_does_not_start_over(copy: Path, train_here: TrainHere) -> None:
    for step in (4, 6):
        shutil.rmtree(copy / f"checkpoints/step_{step:08d}")
    message = refused(train_here, copy)
    assert "names" in message and "set another run.dir to start over" in message


def test_resuming_with_another_seed_is_refused(copy: Path, train_here: TrainHere) -> None:
    message = refused(train_here, copy, "run.seed=5")
    assert "run.seed was 0 " in message and " is 5 here" in message


def test_resuming_with_other_shards_is_refused(copy: Path, scenes: Path, train_here: TrainHere) -> None:
    message = refused(train_here, copy, f"data.train={scenes}/eval")
    assert "data.train" in message and "fingerprint" in message


@pytest.mark.parametrize("override", ["model.contrastive_width=8", "model.cross_depth=2"])
def test_resuming_with_another_model_is_refused(copy: Path, train_here: TrainHere, override: str) -> None:
    assert f"{override.partition('=')[0]} was " in refused(train_here, copy, override)


def test_weights_alone_start_a_new_run(sound: Path, scenes: Path, tmp_path: Path, train_here: TrainHere) -> None:
    """Weights are taken over, moments and position are not: other shards and another seed are no mistake then."""
    init = f"checkpoint.init={sound}"
    overrides = ["run.seed=5", f"data.train={scenes}/eval", "optim.lr=1e-9", "optim.encoder_lr=1e-9", "train.steps=2"]
    assert train_here(tmp_path / "warm", init, *overrides) == 0
    assert train_here(tmp_path / "cold", *overrides) == 0
    warm, cold = (losses_by_step(tmp_path / name)[1] for name in ("warm", "cold"))
    assert warm[0] < cold[0] - 0.1
    assert [line["step"] for line in read_metrics(tmp_path / "warm")] == [1, 2]


def test_only_the_newest_are_kept(tmp_path: Path, train_here: TrainHere) -> None:
    assert train_here(tmp_path / "run", "checkpoint.every=1", "checkpoint.keep=3") == 0
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["latest", "step_00000004", "step_00000005", "step_00000006"]


def test_an_unreachable_checkpoint_is_not_taken_for_damaged(
    copy: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket, which open() cannot open, stands in for a server that does not answer for a moment."""
    before, state = sorted((copy / "checkpoints").iterdir()), copy / STEP / "state.json"
    saved = state.read_bytes()
    state.unlink()
    monkeypatch.chdir(state.parent)
    with socket.socket(socket.AF_UNIX) as unanswered:
        unanswered.bind(state.name)
    with pytest.raises(StorageLost, match=r"step_00000004 cannot be reached .*start the same command again"):
        train_here(copy)
    assert sorted((copy / "checkpoints").iterdir()) == before
    state.unlink()
    state.write_bytes(saved)
    assert train_here(copy) == 0


def killed(*words: str) -> int:
    """A run that is killed as its checkpoint of step 4 is about to be renamed."""
    rename = os.rename

    def killed_here(source: Any, target: Any) -> None:
        if "step_00000004" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = killed_here
    return mvlm(*words)


def test_a_kill_while_saving_leaves_the_checkpoint_before(
    sound: Path, scenes: Path, tmp_path: Path, train_here: TrainHere
) -> None:
    """At every other moment too: test_saver.py."""
    run = tmp_path / "run"
    (tmp_path / "ds.json").write_text("{}")
    given = ["train", TOML, "--deepspeed_config", str(tmp_path / "ds.json"), *TINY, f"data.train={scenes}/train"]
    given += [f"run.dir={run}", "train.steps=6", "checkpoint.every=2"]
    ended = run_ranks(killed, *given)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert find_checkpoint(run).name == "step_00000002"
    assert list((run / "checkpoints").glob("step_00000004.partial-*"))
    reached = read_metrics(run)[-1]["step"]
    assert 4 <= reached <= 6
    assert train_here(run, "checkpoint.every=2") == 0
    assert [line["step"] for line in read_metrics(run)] == [*range(1, reached + 1), 3, 4, 5, 6]
    assert losses_by_step(run) == losses_by_step(sound)
    assert not list((run / "checkpoints").glob("*.partial*"))


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(
    mount_disk: Callable[[str], Path], train_here: TrainHere
) -> None:
    """A checkpoint takes 1.8 MB, that of step 0 a third of that: the one of step 4 does not fit beside the others."""
    run = mount_disk("3m") / "run"
    with pytest.raises(UserError, match=r"could not be written .*No space left.*free some room"):
        train_here(run, "checkpoint.every=2")
    assert find_checkpoint(run).name == "step_00000002"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "latest",
        "step_00000000",
        "step_00000002",
    ]
    subprocess.run(["mount", "-o", "remount,size=20m", str(run.parent)], check=True)
    assert train_here(run, "checkpoint.every=2") == 0
    reached = len(read_metrics(run)) - 4  # training went on while the files were written
    assert 4 <= reached <= 6
    assert [line["step"] for line in read_metrics(run)] == [*range(1, reached + 1), 3, 4, 5, 6]


def test_numbers_in_files_read_back_equal(sound: Path) -> None:
    for line in (sound / "metrics.jsonl").read_text().splitlines():
        assert json.dumps(json.loads(line)) == line
    state = json.loads((sound / STEP / "state.json").read_text())
    assert (state["step"], state["samples_seen"], state["seed"]) == (4, 64, 0)


@pytest.mark.parametrize("moment", ["restore", "FencingToken"])
def test_a_checkpoint_that_a_running_attempt_deletes_gives_way_to_its_newest(
    sound: Path, copy: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Until this attempt has claimed its number the other goes on, saves, and deletes what it no longer keeps."""
    module = loop if moment == "FencingToken" else checkpoints
    real = getattr(module, moment)

    def late(*words: object) -> object:
        shutil.rmtree(copy / STEP, ignore_errors=True)
        (copy / "checkpoints/latest").write_text("step_00000006")
        return real(*words)

    monkeypatch.setattr(module, moment, late)
    assert train_here(copy, "train.steps=7") == 0
    assert [line["step"] for line in read_metrics(copy)] == [1, 2, 3, 4, 5, 6, 7]
    assert find_checkpoint(copy).name == "step_00000007"
