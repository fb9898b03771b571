"""The current checkpoint of a run: the one that `latest` names or, if that is unusable, the newest whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.newest import newest_whole, search_whole
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.pretrained.read import read_tensors
from mvlm.training.checkpoint.resume import starting_point
from tests.training.test_saver import steps_saved

WEIGHTS, MOMENTS = "weights-00000-of-00001.safetensors", "moments-00000-of-00001.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    run = tmp_path_factory.mktemp("saved") / "run"
    steps_saved(run, Checkpoint(keep=3), 2, 4, 6)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def folder_with_files(latest: Path) -> None:
    latest.mkdir()
    (latest / "mine").touch()


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda latest: None, "is missing"),
    "empty": (lambda latest: latest.write_text(""), "is empty"),
    "blank": (lambda latest: latest.write_text(" \n"), "is empty"),
    "garbage": (lambda latest: latest.write_bytes(b"\x00\xff\xfe"), "names no step"),
    "outside": (lambda latest: latest.write_text("../../etc"), "names no step"),
    "a path": (lambda latest: latest.write_text("../checkpoints/step_00000002"), "names no step"),
    "10 MB": (lambda latest: latest.write_bytes(b"step_00000002" * 800_000), "names no step"),
    "digits": (lambda latest: latest.write_text("step_" + "9" * 5000), "names no step"),
    "not there": (lambda latest: latest.write_text("step_00000005"), "which is not there"),
    "a folder": (lambda latest: latest.mkdir(), "is not a file"),
    "a full folder": (folder_with_files, "is not a file"),
    "a pipe": (os.mkfifo, "is not a file"),
    "a link": (lambda latest: latest.symlink_to("step_00000002"), "is a symbolic link"),
    "a dangling link": (lambda latest: latest.symlink_to("step_00000005"), "is a symbolic link"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_latest_is_replaced_by_the_newest_whole_step(
    run: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, what = UNUSABLE[case]
    latest = run / "checkpoints/latest"
    latest.unlink()
    make(latest)
    (run / "checkpoints/step_00000006" / WEIGHTS).unlink()  # so that the newest is not whole
    assert find_checkpoint(run).name == find_checkpoint(run).name == "step_00000004"
    said = capsys.readouterr().err  # once, though it was asked for twice
    assert said.startswith(f"mvlm: {latest} ") and what in said and "step_00000004 is used" in said
    assert said.count("\n") == 1 and len(said) < 400
    assert read_tensors(str(run)).keys() == {"first", "second", "third.bias"}

    start = starting_point(run, Checkpoint(init="nowhere"))
    assert (start.checkpoint, start.resumes, start.own) == (run / "checkpoints/step_00000004", True, True)
    said = capsys.readouterr().err
    assert what in said and "resumes from step_00000004" in said and said.count("\n") == 1
    assert latest.read_text() == "step_00000004" and not latest.is_symlink()
    assert (run / "checkpoints/step_00000006.damaged").is_dir()
    assert not list((run / "checkpoints").glob("step_00000004.*"))
    assert newest_whole(run).name == "step_00000004"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ending", ["", "\n", " \r\n"])
def test_a_latest_that_names_a_whole_step_is_obeyed(run: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Even if newer ones exist: this is how to go back on purpose."""
    (run / "checkpoints/latest").write_text(f"step_00000002{ending}")
    assert find_checkpoint(run).name == newest_whole(run).name == "step_00000002"
    assert capsys.readouterr().err == ""
    assert len(list((run / "checkpoints").glob("step_????????"))) == 3


def test_resuming_an_older_checkpoint_of_the_same_run_says_how_to_go_back(run: Path) -> None:
    older = Checkpoint(resume=str(run / "checkpoints/step_00000002"))
    with pytest.raises(UserError, match=r"names step_00000002 of .* latest is step_00000006: .* into \S+/latest"):
        starting_point(run, older)
    assert starting_point(run, Checkpoint(resume=str(run))).checkpoint == run / "checkpoints/step_00000006"
    (run / "checkpoints/latest").write_text("step_00000002")
    assert starting_point(run, older).checkpoint == run / "checkpoints/step_00000002"


def test_a_copy_of_a_mirror_is_read_by_its_own_names(run: Path) -> None:
    home = run / "checkpoints"
    for step, attempt in ((2, 1), (4, 2), (6, 10)):
        (home / f"step_0000000{step}").rename(home / f"step_0000000{step}.attempt-{attempt}")
    (home / "latest").write_text("step_00000004.attempt-2")
    assert find_checkpoint(run).name == "step_00000004.attempt-2"
    (home / "latest").unlink()
    assert newest_whole(run).name == "step_00000006.attempt-10"


def test_a_checkpoint_without_moments_is_skipped_unless_latest_names_it(run: Path) -> None:
    (run / "checkpoints/step_00000006" / MOMENTS).unlink()
    assert search_whole(run).whole.name == "step_00000006"
    (run / "checkpoints/latest").unlink()
    assert search_whole(run).whole.name == "step_00000004"
    assert find_checkpoint(run).name == "step_00000006"


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_unchanged(run: Path) -> None:
    (run / "checkpoints/latest").unlink()
    for folder in (run / "checkpoints").iterdir():
        (folder / WEIGHTS).unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"step_00000006 is damaged .*weights"):
        starting_point(run, Checkpoint())
    with pytest.raises(UserError, match=r"latest is missing, and no step folder beside it is whole: bring"):
        find_checkpoint(run)
    assert sorted(run.rglob("*")) == before


def test_names_that_only_look_like_steps_are_ignored(tmp_path: Path) -> None:
    home = tmp_path / "checkpoints"
    for name in ("step_0000000x", "step_000000001", "step_00000001.damaged", "step_00000001.partial-1", "notes"):
        (home / name).mkdir(parents=True)
    (home / "step_00000009").touch()
    assert starting_point(tmp_path, Checkpoint()).checkpoint is None
