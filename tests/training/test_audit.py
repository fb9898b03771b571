"""Micro-batches that another rank computes again: the same bits, unless one of the two has miscomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.schema import Objectives
from mvlm.errors import ExitCode, UserError
from mvlm.runtime import dist
from mvlm.training.audit import Audit
from mvlm.training.engine import Engine
from tests.ranks import run_ranks
from tests.training.conftest import losses_by_step, read_metrics, train_in
from tests.training.test_checksums import LAYOUTS, flip

WORDS = (
    "objectives.itm_group=8",  # more than a micro-batch
    "model.dropout=0.1",
    "train.global_batch=8",
    "data.workers=0",
    "checkpoint.every=2",
)
FAULTY_STEP = 3


def miscompute(times: int) -> None:
    """Have a bit of an activation flip in the passes of `FAULTY_STEP`, the first `times` that it is computed."""
    step, passes, left = Engine.step, Engine._passes, [times]
    now: list[int] = []

    def stepping(self: Engine, micro_batches: Any, factor: float, before: int, metrics: Any = None) -> Any:
        now[:] = [before + 1]
        return step(self, micro_batches, factor, before, metrics)

    def computing(self: Engine, *given: Any) -> Any:
        if now != [FAULTY_STEP] or not left[0]:
            return passes(self, *given)
        left[0] -= 1
        norm = next(module for module in self.model.text.modules() if isinstance(module, nn.LayerNorm))
        hook = norm.register_forward_hook(lambda _, __, output: flip(output.detach(), 5, 13))
        try:
            return passes(self, *given)
        finally:
            hook.remove()

    Engine.step, Engine._passes = stepping, computing  # type: ignore[method-assign]


def train_ranks(
    place: Path, scenes: Path, layout: str, words: tuple[str, ...], times: int = 0, plain: bool = False
) -> int:
    """What each rank runs: an audited run in which rank 1 miscomputes `times`; with `plain`, a plain one before it."""
    dist.init()
    (own := place / str(dist.rank())).mkdir()
    try:
        if plain:
            assert train_in(own, scenes, place / "plain", *words, deepspeed=LAYOUTS[layout]) == 0
        if times and dist.rank() == 1:
            miscompute(times)
        return train_in(own, scenes, place / "run", *words, "train.audit=1", deepspeed=LAYOUTS[layout])
    except UserError as error:
        print(error)
        return int(error.exit_code)


def test_a_rank_that_miscomputes_once_is_named_and_rolled_back(scenes: Path, tmp_path: Path) -> None:
    """ITM groups and the contrast span both ranks."""
    words = (*WORDS, "train.steps=5")
    done = run_ranks(train_ranks, tmp_path, scenes, "fp32 stage 0", words, 1, True, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("in step 3 a micro-batch came out differently on a second rank") == 1
    assert "than on rank 1 on" in done.stderr
    assert "At step 3 a micro-batch came out differently on a second rank: back to step_00000002." in done.stderr
    assert losses_by_step(tmp_path / "run") == losses_by_step(tmp_path / "plain")
    assert not (tmp_path / "run" / SKIPPED).exists()


def test_micro_batches_are_drawn_by_their_share() -> None:
    audit = Audit(0.2, nn.Linear(1, 1), [], Objectives(), 3)
    drawn = np.array([[audit.is_due(step, number) for number in range(4)] for step in range(2000)])
    assert 0.18 < drawn.mean() < 0.22
    assert all(0.15 < share < 0.25 for share in drawn.mean(0))
    assert audit.miscomputed(0) is None


@pytest.mark.campaign
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_comes_out_differently_if_nothing_is_wrong(
    layout: str, ranks: int, scenes: Path, tmp_path: Path
) -> None:
    """Two micro-batches a step, with groups that span both; the audit changes nothing in the run."""
    words = (*WORDS, f"train.global_batch={8 * ranks}", "train.micro_batch=4", "train.steps=4", "train.ema=0.9")
    done = run_ranks(train_ranks, tmp_path, scenes, layout, words, 0, True, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "came out differently" not in done.stdout + done.stderr
    assert losses_by_step(tmp_path / "run") == losses_by_step(tmp_path / "plain")


@pytest.mark.campaign
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_ends_if_a_rank_miscomputes_again_and_again(layout: str, scenes: Path, tmp_path: Path) -> None:
    words = (*WORDS, "train.micro_batch=2", "train.steps=5")
    done = run_ranks(train_ranks, tmp_path, scenes, layout, words, 99, ranks=2)
    assert done.returncode == ExitCode.REQUEUE, done.stdout + done.stderr
    assert "At step 3 a micro-batch came out differently on a second rank, the 4th time in this attempt" in done.stdout
    assert done.stderr.count("than on rank 1 on") == 4
    assert find_checkpoint(tmp_path / "run").name == "step_00000002"


@pytest.mark.campaign
@pytest.mark.parametrize(
    "option",
    [
        "data.flip=false",
        "objectives.contrastive='sigmoid'",
        "objectives.itc_exchange='ring'",
        "train.recompute=1",
        "objectives.itm_group=2",  # within each micro-batch
        "objectives.itm=0",
    ],
)
def test_nothing_comes_out_differently_with_other_options(option: str, scenes: Path, tmp_path: Path) -> None:
    """Two micro-batches on each of two ranks, with groups that span all of them."""
    words = (*WORDS, "train.micro_batch=2", "train.steps=3", option)
    done = run_ranks(train_ranks, tmp_path, scenes, "bf16 stage 1", words, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "came out differently" not in done.stdout + done.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line][-1] == 3
