"""A run folder that is removed, moved or replaced while it trains: noticed, and nothing comes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    shutil.rmtree(run)


def move(run: Path) -> None:
    run.rename(run.with_name("moved"))


def replace_by_an_empty_one(run: Path) -> None:
    move(run)
    run.mkdir()


def replace_by_anothers(run: Path) -> None:
    move(run)
    FencingToken(run)


Fate = Callable[[Path], None]
FATES = [remove, move, replace_by_an_empty_one, replace_by_anothers]


@pytest.mark.parametrize(
    ("fate", "last"), [*((fate, False) for fate in FATES), (remove, True), (replace_by_anothers, True)]
)
def test_it_is_noticed_and_nothing_is_written_there(
    tmp_path: Path, scenes: Path, train_here: TrainHere, fate: Fate, last: bool
) -> None:
    run = tmp_path / "run"

    def befall(model: torch.nn.Module, folder: Path, step: int, at_the_end: bool) -> tuple[dict[str, float], None]:
        if at_the_end == last:
            fate(folder)
            found.extend(sorted(run.rglob("*")))
        return {}, None

    found: list[Path] = []
    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=6", "checkpoint.every=2"]
    (tmp_path / "ds.json").write_text("{}")
    with pytest.raises(UserError, match=LOST):
        given = [*words, "eval.every=3"]
        names = str(tmp_path / "ds.json"), TOML
        train(load_config(TOML, given), names, given_keys(TOML, given), lambda _: befall)
    assert sorted(run.rglob("*")) == found
    assert run.exists() == (fate in (replace_by_an_empty_one, replace_by_anothers))
    if fate is not remove and not last:
        shutil.rmtree(run, ignore_errors=True)
        run.with_name("moved").rename(run)
        steps = [line["step"] for line in read_metrics(run) if "loss" in line]
        # It ended at once, or at its next look at the claim itself, which is that of a save.
        assert steps == [1, 2, 3] or (fate is replace_by_anothers and steps == [1, 2, 3, 4])
        assert train_here(run) == 0
        assert sorted({line["step"] for line in read_metrics(run)}) == [1, 2, 3, 4, 5, 6]


def test_no_pictures_of_an_evaluation_bring_it_back(loaded: Any, dataset: EvalDataset, tmp_path: Path) -> None:
    run = tmp_path / "gone"
    assert write_pictures(loaded.model, dataset, 1, run, 6, torch.device("cpu")) is None
    assert not run.exists()


def test_metrics_that_are_edited_or_deleted_under_way_get_all_later_lines(
    tmp_path: Path, train_here: TrainHere
) -> None:
    """As an editor does it: by another file of that name."""
    run = tmp_path / "run"

    def befall(model: torch.nn.Module, folder: Path, step: int, at_the_end: bool) -> tuple[dict[str, float], None]:
        metrics = folder / "metrics.jsonl"
        if step == 2:
            (folder / "edited").write_text(metrics.read_text().splitlines(keepends=True)[0])
            (folder / "edited").rename(metrics)
        if step == 4:
            assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]
            metrics.unlink()
        return {}, None

    assert train_here(run, "eval.every=2", evaluate=befall) == 0
    assert [line["step"] for line in read_metrics(run)] == [4, 5, 6, 6]


@pytest.mark.parametrize("fate", FATES)
def test_no_checkpoint_is_begun_or_finished_in_its_place(tmp_path: Path, fate: Fate) -> None:
    run = tmp_path / "run"
    engine, saver = Trained(), Saver(Trained(), run, Checkpoint(), FencingToken(run))
    save(saver, engine, 2)
    fate(run)
    found = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=LOST):
        save(saver, engine, 4)
    assert sorted(run.rglob("*")) == found


@pytest.mark.parametrize("fate", FATES)
def test_it_is_noticed_between_the_beginning_and_the_end_of_a_save(tmp_path: Path, fate: Fate) -> None:
    run = tmp_path / "run"
    engine, saver = Trained(), Saver(Trained(), run, Checkpoint(), FencingToken(run))
    save(saver, engine, 2)
    with saver, pytest.raises(UserError, match=LOST):
        saver.start(TrainState(4, 64, 0, "shards"))
        fate(run)
        found = sorted(run.rglob("*"))
        saver.finish()
    assert sorted(run.rglob("*")) == found


@pytest.mark.parametrize("late", [False, True], ids=["before publishing", "in the middle of it"])
def test_a_save_that_a_later_attempt_has_deleted_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    run = tmp_path / "run"
    engine, saver = Trained(), Saver(Trained(), run, Checkpoint(), FencingToken(run))
    save(saver, engine, 2)
    saver.start(TrainState(4, 64, 0, "shards"))
    while not saver.written:
        time.sleep(0.01)

    def begin_another(path: Path, text: str) -> None:
        monkeypatch.undo()
        Saver(Trained(), run, Checkpoint(), FencingToken(run))
        write_durably(path, text)

    if late:
        monkeypatch.setattr(savers, "write_durably", begin_another)
    else:
        Saver(Trained(), run, Checkpoint(), FencingToken(run))
    with pytest.raises(UserError, match=r"A later attempt .* attempt 1 ends at step 4 without writing more"):
        saver.finish()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step_00000002"]


def test_it_is_noticed_in_the_middle_of_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the checkpoint has its name, and before `latest` has it."""
    run = tmp_path / "run"
    engine, saver = Trained(), Saver(Trained(), run, Checkpoint(), FencingToken(run))
    save(saver, engine, 2)

    def late(path: Path, text: str) -> None:
        if path.name == "latest":
            move(run)
        write_durably(path, text)

    monkeypatch.setattr(savers, "write_durably", late)
    with pytest.raises(UserError, match=LOST):
        save(saver, engine, 4)
    assert not run.exists()
