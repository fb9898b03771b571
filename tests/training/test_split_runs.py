"""Runs whose ranks split layers roll back, stop at a signal, replace a lost node and resume with whole layers."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mvlm.checkpoint import peers
from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.errors import ExitCode
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.training.engine import Engine
from tests.ranks import run_ranks
from tests.training.conftest import losses_by_step, train_in

PAIRS, BAD, STOPPED = 8, 3, 5
"""Pairs of a step; the step with a bad batch, which is found in the next one; the step in which a signal arrives."""
WORDS = (f"train.global_batch={PAIRS}", "data.workers=0", "checkpoint.every=2")
NODE = 2
"""Ranks of a node, which are those of a replica."""


def poison_a_batch() -> None:
    """Make the losses of step BAD NaN."""
    forward = MaskVLM.forward

    def poisoned(self: Any, batch: Any, *beside: Any) -> Any:
        losses = forward(self, batch, *beside)
        if batch.position_B.is_meta or not (batch.position_B == (BAD - 1) * PAIRS).any():
            return losses
        return {name: loss * math.nan for name, loss in losses.items()}

    MaskVLM.forward = poisoned  # type: ignore[method-assign]


def signal_in_a_step() -> None:
    """Have this rank receive SIGTERM in step STOPPED."""
    step = Engine.step

    def stepping(self: Engine, micro_batches: Any, factor: float, before: int, metrics: Any = None) -> Any:
        if before + 1 == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, micro_batches, factor, before, metrics)

    Engine.step = stepping  # type: ignore[method-assign]


def train_split_run(place: Path, scenes: Path, words: tuple[str, ...], split: int, stops: bool) -> int:
    """Train as one rank; with `checkpoint.peers=1` each node has its own run folder and memory."""
    rank = int(os.environ["RANK"])
    own = place / f"rank-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    folder = place / "run"
    if "checkpoint.peers=1" in words:
        here = place / f"node-{rank // NODE}"
        (here / "shm").mkdir(parents=True, exist_ok=True)
        os.chdir(here)
        folder, peers.SHARED = Path("run"), here / "shm"
    poison_a_batch()
    if stops and rank == 1:
        signal_in_a_step()
    content = {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": split}}
    dist.init()
    return train_in(own, scenes, folder, *words, deepspeed=content)


def whole_run(scenes: Path, place: Path) -> dict[int, tuple[float, ...]]:
    """Losses and norms of the run on one rank, with the bad batch left out from the start."""
    (place / "run").mkdir(parents=True)
    (place / "run" / SKIPPED).write_text(json.dumps({"position": (BAD - 1) * PAIRS}) + "\n")
    done = run_ranks(train_split_run, place, scenes, WORDS, 1, False)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses_by_step(place / "run")


def check_same(found: dict[int, tuple[float, ...]], expected: dict[int, tuple[float, ...]]) -> None:
    assert found.keys() == expected.keys() == set(range(1, 7))
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-3), step


@pytest.mark.campaign
def test_a_run_of_split_layers_survives_a_roll_back_a_signal_and_the_loss_of_a_node(
    scenes: Path, tmp_path: Path
) -> None:
    """Two replicas of two ranks are on a node each; what the second node loses is in the first one's memory."""
    expected = whole_run(scenes, tmp_path / "whole")
    place = tmp_path / "split"
    words = (*WORDS, f"checkpoint.mirror=file://{tmp_path}/mirror", "checkpoint.peers=1")
    done = run_ranks(train_split_run, place, scenes, words, NODE, True, ranks=2 * NODE)
    assert done.returncode == ExitCode.REQUEUE, done.stdout + done.stderr
    (line,) = map(json.loads, (place / "node-0/run" / SKIPPED).read_text().splitlines())
    assert (line["step"], line["position"]) == (BAD, (BAD - 1) * PAIRS)
    assert find_checkpoint(place / "node-0/run").name == f"step_{STOPPED:08d}"
    shutil.rmtree(place / "node-1/run")
    shutil.rmtree(place / "node-1/shm")
    done = run_ranks(train_split_run, place, scenes, words, NODE, False, ranks=2 * NODE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"step_{STOPPED:08d} was made whole from what the nodes hold" in done.stdout + done.stderr
    check_same(losses_by_step(place / "node-0/run"), expected)


@pytest.mark.campaign
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_of_split_layers_continues_with_whole_ones(ranks: int, scenes: Path, tmp_path: Path) -> None:
    expected = whole_run(scenes, tmp_path / "whole")
    place = tmp_path / "split"
    done = run_ranks(train_split_run, place, scenes, WORDS, NODE, True, ranks=2 * NODE)
    assert done.returncode == ExitCode.REQUEUE, done.stdout + done.stderr
    done = run_ranks(train_split_run, place, scenes, WORDS, 1, False, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(losses_by_step(place / "run"), expected)
