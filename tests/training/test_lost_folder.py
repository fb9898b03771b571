"""A run notices that its folder was removed, moved or replaced, and writes nothing more in its place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.checkpoint import integrity
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.state import TrainState
from mvlm.config.load import given_keys, load_config
from mvlm.config.schema import Checkpoint
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.errors import UserError
from mvlm.evaluate.pictures import write_pictures
from mvlm.runtime.storage import write_durably
from mvlm.training.checkpoint import save as savers
from mvlm.training.checkpoint.save import Saver
from mvlm.training.fit.run import train
from tests.conftest import TINY
from tests.training.conftest import TOML, TrainHere, read_metrics
from tests.training.saver_worker import Trained, save

LOST = r"run has been removed, moved or replaced since attempt 1 began, .* move it back .* or set another run.dir\.$"


def remove(run: Path) -> None:
    """Again if a save wrote a file meanwhile."""
    while run.exists():
        shutil.rmtree(run, ignore_errors=True)


def move(run: Path) -> None:
    run.rename(run.with_name("moved"))


def replace_by_empty_folder(run: Path) -> None:
    move(run)
    run.mkdir()


def replace_by_other_run(run: Path) -> None:
    move(run)
    FencingToken(run)


Loss = Callable[[Path], None]
LOSSES = [remove, move, replace_by_empty_folder, replace_by_other_run]


@pytest.mark.parametrize(
    ("lose", "last"), [*((lose, False) for lose in LOSSES), (remove, True), (replace_by_other_run, True)]
)
def test_a_lost_folder_ends_training_and_nothing_is_written_in_its_place(
    tmp_path: Path, scenes: Path, train_here: TrainHere, lose: Loss, last: bool
) -> None:
    run = tmp_path / "run"
    found: list[Path] = []

    def lose_folder(model: torch.nn.Module, folder: Path, step: int, at_the_end: bool) -> tuple[dict[str, float], None]:
        if at_the_end == last:
            lose(folder)
            found.extend(sorted(run.rglob("*")))
        return {}, None

    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=6", "checkpoint.every=2"]
    (tmp_path / "ds.json").write_text("{}")
    with pytest.raises(UserError, match=LOST):
        given = [*words, "eval.every=3"]
        names = str(tmp_path / "ds.json"), TOML
        train(load_config(TOML, given), names, given_keys(TOML, given), lambda _: lose_folder)
    assert sorted(run.rglob("*")) == found
    assert run.exists() == (lose in (replace_by_empty_folder, replace_by_other_run))
    if lose is not remove and not last:
        shutil.rmtree(run, ignore_errors=True)
        run.with_name("moved").rename(run)
        steps = [line["step"] for line in read_metrics(run) if "loss" in line]
        # It ended at once, or when the next save read the fencing token itself.
        assert steps == [1, 2, 3] or (lose is replace_by_other_run and steps == [1, 2, 3, 4])
        assert train_here(run) == 0
        assert sorted({line["step"] for line in read_metrics(run)}) == [1, 2, 3, 4, 5, 6]


def test_pictures_of_an_evaluation_do_not_recreate_it(loaded: Any, dataset: EvalDataset, tmp_path: Path) -> None:
    run = tmp_path / "gone"
    assert write_pictures(loaded.model, dataset, 1, run, 6, torch.device("cpu")) is None
    assert not run.exists()


def test_later_lines_reach_metrics_that_are_edited_or_deleted_while_a_run_trains(
    tmp_path: Path, train_here: TrainHere
) -> None:
    """An editor replaces the file by another of the same name."""
    run = tmp_path / "run"

    def edit_or_delete(
        model: torch.nn.Module, folder: Path, step: int, at_the_end: bool
    ) -> tuple[dict[str, float], None]:
        metrics = folder / "metrics.jsonl"
        if step == 2:
            (folder / "edited").write_text(metrics.read_text().splitlines(keepends=True)[0])
            (folder / "edited").rename(metrics)
        if step == 4:
            assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]
            metrics.unlink()
        return {}, None

    assert train_here(run, "eval.every=2", evaluate=edit_or_delete) == 0
    assert [line["step"] for line in read_metrics(run)] == [4, 5, 6, 6]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def engine() -> Trained:
    return Trained()


@pytest.fixture
def saver(run: Path, engine: Trained) -> Saver:
    """Has saved step 2 of the run."""
    saver = Saver(engine, run, Checkpoint(), FencingToken(run))
    save(saver, engine, 2)
    return saver


@pytest.mark.parametrize("lose", LOSSES)
def test_a_save_does_not_start_in_its_place(run: Path, saver: Saver, engine: Trained, lose: Loss) -> None:
    lose(run)
    found = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=LOST):
        save(saver, engine, 4)
    assert sorted(run.rglob("*")) == found


@pytest.mark.parametrize("lose", LOSSES)
def test_a_save_that_has_started_does_not_finish_in_its_place(run: Path, saver: Saver, lose: Loss) -> None:
    with saver, pytest.raises(UserError, match=LOST):
        saver.start(TrainState(4, 64, 0, "shards"))
        lose(run)
        found = sorted(run.rglob("*"))
        saver.finish()
    assert sorted(run.rglob("*")) == found


@pytest.mark.parametrize("late", [False, True], ids=["before publishing", "in the middle of publishing"])
def test_a_save_that_a_later_attempt_has_deleted_is_never_published(
    run: Path, saver: Saver, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    saver.start(TrainState(4, 64, 0, "shards"))
    while not saver.written:
        time.sleep(0.01)

    def begin_another(path: Path, text: str) -> None:
        monkeypatch.undo()
        Saver(Trained(), run, Checkpoint(), FencingToken(run))
        write_durably(path, text)

    if late:
        monkeypatch.setattr(integrity, "write_durably", begin_another)
    else:
        Saver(Trained(), run, Checkpoint(), FencingToken(run))
    with pytest.raises(UserError, match=r"A later attempt .* attempt 1 ends at step 4 without writing more"):
        saver.finish()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step_00000002"]


def test_a_folder_that_is_moved_in_the_middle_of_publishing_does_not_come_back(
    run: Path, saver: Saver, engine: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved after the checkpoint has its final name, and before `latest` names it."""

    def move_first(path: Path, text: str) -> None:
        if path.name == "latest":
            move(run)
        write_durably(path, text)

    monkeypatch.setattr(savers, "write_durably", move_first)
    with pytest.raises(UserError, match=LOST):
        save(saver, engine, 4)
    assert not run.exists()
