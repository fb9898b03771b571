"""What each rank does in the tests of ranks that split layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.layout import CHECKPOINTS, step_name
from mvlm.checkpoint.state import TrainState
from mvlm.estimate.sums import SumCounter
from mvlm.runtime import dist, replicas
from mvlm.training.checkpoint.resume import restore
from mvlm.training.checkpoint.save import Saver
from mvlm.training.engine import Engine
from tests.training.parity_worker import (
    WEIGHTS,
    built,
    configuration,
    engine_of,
    engine_run,
    plain_run,
    reference_step,
    steps_of,
)
from tests.training.saved_tensors import whole_tensors

Whole = dict[str, dict[str, Tensor]]

SAVED = 2
"""Updates before the checkpoint."""


def train_split(shards: str, file: Path, size: int, layouts: list[tuple[int, int]]) -> None:
    """Train replicas of `size` ranks; a layout is a ZeRO stage and the number of micro-batches of a step."""
    dist.init()
    replicas.arrange(size)
    losses, gradients = reference_step(shards) if dist.rank() == 0 else ({}, {})
    results: dict[str, object] = {
        f"zero{stage}_accumulation{accumulation}": engine_run(shards, stage, accumulation, gradients)
        for stage, accumulation in layouts
    }
    results |= {"plain": plain_run(shards), "reference": losses}
    if dist.rank() == 0:
        file.write_text(json.dumps(results))
    dist.barrier()
    dist.close()


def engine_at(shards: str, size: int, stage: int) -> tuple[Engine, list[Any]]:
    """An engine in replicas of `size` ranks, and the micro-batches of its steps."""
    from deepspeed.utils import groups

    groups.mpu = None  # an earlier engine's
    replicas.arrange(size)
    config = configuration(
        shards, 16 // replicas.world(), [*WEIGHTS, "train.ema=0.5", "train.freeze=['text']", "train.recompute=1"]
    )
    model, loader = built(config, replicas.rank(), replicas.world())
    content = {"zero_optimization": {"stage": stage}, "tensor_parallel": {"autotp_size": size}}
    return engine_of(model, config, content, replicas.world()), steps_of(loader)


def save(engine: Engine, run: Path) -> Path:
    config = configuration("", 4)
    saver = Saver(engine, run, config.checkpoint, FencingToken(run))
    saver.start(TrainState(SAVED, SAVED * 16, 0, "shards", updates=SAVED))
    saver.finish()
    return run / CHECKPOINTS / step_name(SAVED)


def sums_of_a_step(engine: Engine, batches: list[Any]) -> tuple[list[int], list[int]]:
    """Elements and calls of the sums over a replica's ranks in one step, as made and as the plan counts them."""
    sent: list[int] = []
    sum_within_ = replicas.sum_within_

    def note_and_sum(tensor: Tensor) -> Tensor:
        sent.append(tensor.numel())
        return sum_within_(tensor)

    replicas.sum_within_ = note_and_sum
    try:
        with SumCounter(engine.model) as counter:
            engine.step(batches[0], 0.5, 0)
    finally:
        replicas.sum_within_ = sum_within_
    return [sum(sent), len(sent)], [counter.elements, counter.times]


def make_step(engine: Engine, batches: list[Any], step: int) -> tuple[float, Whole]:
    """The mean of the total loss over all replicas, and the tensors after the step."""
    losses = engine.step(batches[step], 0.5, step)
    mean = replicas.all_reduce(torch.stack(list(losses.values())).sum()) / replicas.world()
    return float(mean), dict(whole_tensors(engine))


def resume_across(shards: str, folder: Path, layouts: list[tuple[int, int]]) -> None:
    """Train and save in the first layout (ranks of a replica, ZeRO stage); each other resumes from the one before."""
    dist.init()
    (size, stage), *others = layouts
    engine, batches = engine_at(shards, size, stage)
    sums = sums_of_a_step(engine, batches)
    for step in range(1, SAVED):
        make_step(engine, batches, step)
    saved = dict(whole_tensors(engine))
    checkpoint = save(engine, folder / "first")
    told: dict[str, Any] = {"first": make_step(engine, batches, SAVED), "saved": saved, "sums": sums, "resumed": []}
    for number, (size, stage) in enumerate(others):
        engine, batches = engine_at(shards, size, stage)
        restore(engine, checkpoint)
        found = dict(whole_tensors(engine))
        checkpoint = save(engine, folder / f"again-{number}")
        told["resumed"].append((found, make_step(engine, batches, SAVED)))
    if dist.rank() == 0:
        torch.save(told, folder / "told.pt")
    dist.barrier()
    dist.close()
