"""Pruning deletes superseded checkpoints of the run's own chain of attempts, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.layout import Writer, read_writer, step_name, step_of
from mvlm.checkpoint.prune import lineage, to_keep
from mvlm.config.load import load_config
from mvlm.config.schema import Checkpoint
from mvlm.config.validate import LAST_STEP
from mvlm.errors import UserError
from mvlm.training.checkpoint.save import Saver
from mvlm.training.schedule import schedule_steps
from tests.training.conftest import TOML
from tests.training.saver_worker import Trained, save
from tests.training.test_saver import names, steps_saved, weight_of


def begin(run: Path, *steps: int, keep: int = 1) -> list[str]:
    """What is left after a new run has saved these steps."""
    engine = Trained()
    saver = Saver(engine, run, Checkpoint(keep=keep), FencingToken(run))
    for step in steps:
        save(saver, engine, step)
    return names(run)


def test_every_checkpoint_names_its_writer(tmp_path: Path) -> None:
    begin(tmp_path, 2, keep=9)
    steps_saved(tmp_path, Checkpoint(keep=9), 4)
    claims = [json.loads((tmp_path / f"attempts/000{n}.json").read_text()) for n in (1, 2)]
    writers = [read_writer(tmp_path / f"checkpoints/step_0000000{step}") for step in (2, 4)]
    assert writers == [Writer(claims[0]["id"], 1), Writer(claims[0]["id"], 2)]
    assert claims[1]["chain"] == claims[0]["id"] != claims[1]["id"]


def test_checkpoints_of_others_are_kept(tmp_path: Path) -> None:
    """One of another run, one of an older version, an unreadable one, and a link to one of its own."""
    begin(tmp_path / "another", 1, 3, keep=9)
    home = tmp_path / "run/checkpoints"
    for step in (1, 3):
        shutil.copytree(tmp_path / f"another/checkpoints/step_0000000{step}", home / f"step_0000000{step}")
    index = home / "step_00000003/index.json"
    index.write_text(json.dumps({"files": json.loads(index.read_text())["files"]}))
    (home / "step_00000004").mkdir()
    assert begin(tmp_path / "run", 5, 6, 7) == ["01", "03", "04", "07", "latest"]
    (home / "step_00000007").rename(tmp_path / "moved")
    (home / "step_00000007").symlink_to(tmp_path / "moved")
    assert steps_saved(tmp_path / "run", Checkpoint(keep=1), 8, 9) == ["01", "03", "04", "07", "09", "latest"]
    assert (tmp_path / "moved/index.json").exists()


def test_a_run_that_begins_in_the_folder_of_another_deletes_nothing_of_it(tmp_path: Path) -> None:
    begin(tmp_path, 2, 4, keep=2)
    assert begin(tmp_path, 3, 5, 6) == ["02", "04", "06", "latest"]


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "file"])
def test_whatever_is_in_the_place_of_a_new_step_is_set_aside(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "another", 2)
    (tmp_path / "another/checkpoints/step_00000002/mine").touch()
    there = tmp_path / "run/checkpoints/step_00000002"
    there.parent.mkdir(parents=True)
    if kind == "folder":
        shutil.copytree(tmp_path / "another/checkpoints/step_00000002", there)
    elif kind == "file":
        there.touch()
    else:
        there.symlink_to(tmp_path / "another/checkpoints" / ("step_00000002" if kind == "link" else "step_9"))
    assert begin(tmp_path / "run", 2) == ["02", "02.aside-1", "latest"]
    assert weight_of(there) == 2 and not there.is_symlink()
    assert (tmp_path / "another/checkpoints/step_00000002/mine").exists()
    said = capfd.readouterr().err.splitlines()
    assert said == [f"mvlm: {there} does not belong to this run: it is kept as step_00000002.aside-1."]


def test_steps_that_a_later_attempt_rolled_back_do_not_count() -> None:
    saved = [(1, 2), (1, 4), (1, 6), (2, 8), (2, 10), (3, 7), (3, 9)]
    assert lineage(saved) == [(3, 9), (3, 7), (1, 6), (1, 4), (1, 2)]
    assert to_keep(saved, Checkpoint(keep=2, keep_every=4)) == [(3, 9), (3, 7), (1, 4)]
    assert to_keep(saved, Checkpoint(keep=9)) == lineage(saved)


def test_the_largest_step_fits_into_a_folders_name() -> None:
    assert step_of(Path(step_name(LAST_STEP))) == LAST_STEP
    with pytest.raises(UserError, match=r"train.steps is 100000000: it must be .*99999999"):
        load_config(TOML, ["train.steps=100000000"])
    config = load_config(TOML, ["train.epochs=1e9"])
    with pytest.raises(UserError, match=r"train.epochs = 1000000000.0 makes .* at most 99999999"):
        schedule_steps(config.train, config.optim, 251)
