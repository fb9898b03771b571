"""The best checkpoint is kept beside the newest one, and a run ends when evaluations stop improving."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvlm.checkpoint.layout import best_checkpoint, find_checkpoint, step_of
from mvlm.checkpoint.mirror import Mirror
from mvlm.checkpoint.selection import Selector
from mvlm.checkpoint.state import BestEvaluation
from mvlm.checkpoint.tensors import WEIGHTS, open_tensors
from mvlm.errors import UserError
from mvlm.watch.status import Watcher
from tests.training.conftest import TrainHere, read_metrics

SCORES = {2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.45, 12: 0.3}
SELECT = ["eval.select=eval/score", "eval.every=2", "checkpoint.every=3", "checkpoint.keep=1", "train.steps=12"]


class Scores:
    """An evaluation with known scores, for `train` to call in place of the real one.

    Args:
        interrupt: called with the step after each evaluation.

    Attributes:
        seen: name and value of one weight of the model at each step that was evaluated.
    """

    def __init__(self, scores: dict[int, float], interrupt: Callable[[int], None] = lambda step: None) -> None:
        self.scores, self._interrupt, self.seen = scores, interrupt, dict[int, Any]()

    def __call__(self, model: Any, run: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        self.seen[step] = next((name, weight.detach().clone()) for name, weight in model.named_parameters())
        self._interrupt(step)
        return {"eval/score": self.scores[step]}, None


@pytest.fixture
def words(scenes: Path) -> list[str]:
    return [*SELECT, f"data.eval={scenes}/eval"]


def kept(run: Path) -> list[int]:
    return sorted(step_of(path) for path in (run / "checkpoints").glob("step_*"))


def state_of(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / name / "state.json").read_text())


def test_the_best_is_kept_beside_the_newest_fetched_from_a_mirror_and_reported_if_lost(
    train_here: TrainHere, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, mirror, scores = tmp_path / "run", tmp_path / "mirror/checkpoints", Scores(SCORES)
    words = [*words, f"checkpoint.mirror=file://{tmp_path}/mirror"]
    assert train_here(run, *words, evaluate=scores) == 0
    assert kept(run) == [4, 12] and step_of(find_checkpoint(run)) == 12
    best = find_checkpoint(run / "best")
    assert step_of(best) == 4 and find_checkpoint(run / "checkpoints/best") == best
    with open_tensors(best, WEIGHTS) as files:
        name, weight = scores.seen[4]
        assert (files[name].tensor() == weight).all(), "the best checkpoint has the weights that were evaluated"
    assert state_of(run, "step_00000012")["best"] == {"metric": "eval/score", "step": 4, "value": 0.5, "since": 4}
    assert sorted(path.name for path in mirror.glob("step_*")) == ["step_00000004.attempt-1", "step_00000012.attempt-1"]
    assert (mirror / "best").read_text() == "step_00000004.attempt-1"

    for number, given in enumerate((f"checkpoint.init={run}/best", f"model.vision_weights={run}/best")):
        begun = tmp_path / f"begun{number}"
        assert train_here(begun, f"data.tokenizer={run}/tokenizer", given, "train.steps=1") == 0
        with open_tensors(begun / "checkpoints/step_00000000", WEIGHTS) as files:
            assert (files[name].tensor() == weight).all(), "a run starts from the best, not from the last"

    run.rename(tmp_path / "lost")
    words = [*words, "eval.every=0"]
    assert train_here(run, *words, "train.steps=13", evaluate=Scores({13: 0.2})) == 0
    assert best_checkpoint(run) == run / "checkpoints/step_00000004" and kept(run) == [4, 13]
    assert (mirror / "step_00000004.attempt-1").exists()

    (run / "checkpoints/step_00000004").rename(tmp_path / "away")
    capfd.readouterr()
    assert train_here(run, *words, "train.steps=14", evaluate=Scores({14: 0.1})) == 0
    assert "The best checkpoint, step_00000004, is gone" in capfd.readouterr().err
    assert step_of(find_checkpoint(run / "best")) == 14

    branch = [*words, f"checkpoint.resume={run}", "checkpoint.mirror=", "train.steps=15"]
    assert train_here(tmp_path / "branch", *branch, evaluate=Scores({15: 0.01})) == 0
    assert step_of(find_checkpoint(tmp_path / "branch/best")) == 15, "the best of another run does not count"


@pytest.mark.parametrize("stop", [4, 6], ids=["the newest is the best", "the newest is another"])
@pytest.mark.parametrize("lost", ["both", "best"])
def test_a_best_that_never_reached_the_mirror_is_uploaded_by_the_next_attempt(
    stop: int, lost: str, train_here: TrainHere, words: list[str], tmp_path: Path
) -> None:
    """As after a kill between publishing and uploading it: here the mirror has lost it."""
    run, mirror = tmp_path / "run", tmp_path / "mirror/checkpoints"
    words = [*words, f"checkpoint.mirror=file://{tmp_path}/mirror"]
    assert train_here(run, *words, f"train.steps={stop}", evaluate=Scores(SCORES)) == 0
    (mirror / "best").unlink()
    shutil.rmtree(mirror if lost == "both" else mirror / "step_00000004.attempt-1")
    for end in (stop, stop + 1, stop + 2):
        assert train_here(run, *words, f"train.steps={end}", "eval.every=0", evaluate=Scores({end: 0.2})) == 0
        assert step_of(find_checkpoint(run / "best")) == 4 and kept(run) == sorted({4, end})
        assert (mirror / "best").read_text() == "step_00000004.attempt-2", "it is uploaded once"
        newest = Mirror(f"file://{tmp_path}/mirror").history()[0]
        assert newest.step == end and (mirror / "latest").read_text() == Path(newest.path()).name
        run.rename(tmp_path / f"lost{end}")


def test_a_run_ends_when_its_scores_stop_improving_however_often_it_is_interrupted(
    train_here: TrainHere, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, words, codes = tmp_path / "run", [*words, "eval.patience=2"], list[int]()

    def interrupt(step: int) -> None:
        if step == 4 and not (tmp_path / "interrupted").exists():
            (tmp_path / "interrupted").touch()
            raise KeyboardInterrupt  # during the best evaluation, which has to be repeated
        if step in (2, 6):
            signal.raise_signal(signal.SIGTERM)

    for _ in range(4):
        try:
            codes.append(train_here(run, *words, evaluate=Scores(SCORES, interrupt)))
        except KeyboardInterrupt:
            codes.append(130)
    assert codes == [75, 130, 75, 0]
    said = "Ended early at step 8: eval/score has not been better than the 0.5 of step 4 for 2 evaluations"
    assert said in capfd.readouterr().err
    assert kept(run) == [4, 8] and step_of(find_checkpoint(run / "best")) == 4
    assert state_of(run, "step_00000008")["best"] == {"metric": "eval/score", "step": 4, "value": 0.5, "since": 2}
    status = Watcher(run).look()
    assert (status.state, status.note, status.best) == ("done", said.partition(": ")[2], 4)

    lines = read_metrics(run)
    (run / "checkpoints/best").unlink()  # as after a kill just before it was written
    assert train_here(run, *words, evaluate=Scores({})) == 0, "a run that has ended makes no more steps"
    assert read_metrics(run) == lines and said in capfd.readouterr().err
    assert step_of(find_checkpoint(run / "best")) == 4


def test_a_run_whose_patience_ends_with_its_last_step_has_not_ended_early(
    train_here: TrainHere, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["eval.patience=1", "train.steps=4"]
    assert train_here(tmp_path / "run", *words, *more, evaluate=Scores({2: 0.5, 4: 0.5})) == 0
    assert "Ended early" not in capfd.readouterr().err


def test_only_a_better_finite_score_counts_as_an_improvement() -> None:
    higher, lower = Selector("eval/x", False, 2), Selector("eval/x", True, 0)
    first = higher.judge(None, 1, {"eval/x": 0.5})
    assert first == BestEvaluation("eval/x", 1, 0.5, 0)
    assert higher.judge(first, 2, {"eval/x": 0.5}) == BestEvaluation("eval/x", 1, 0.5, 1), "an equal score is no better"
    assert higher.judge(first, 2, {"eval/x": float("nan")}) == BestEvaluation("eval/x", 1, 0.5, 1)
    assert higher.judge(None, 2, {"eval/x": float("nan")}) is None
    assert lower.judge(first, 2, {"eval/x": 0.4}) == BestEvaluation("eval/x", 2, 0.4, 0)
    assert higher.judge(first, 2, {"eval/put_off": 60.0}) == first
    assert Selector("eval/y", False, 1).judge(first, 2, {"eval/y": 0.1}) == BestEvaluation("eval/y", 2, 0.1, 0)
    assert [bool(higher.why_over(BestEvaluation("eval/x", 1, 0.5, since))) for since in (1, 2)] == [False, True]
    assert not lower.why_over(BestEvaluation("eval/x", 1, 0.5, 99))
    with pytest.raises(UserError, match=r"eval.select is 'eval/x', which is not among eval/a, eval/b: name one"):
        higher.judge(None, 1, {"eval/a": 1.0, "eval/b": 2.0})
