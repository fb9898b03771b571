"""What each rank does: one engine after another trains, meets a poisoned batch and is rolled back.

Every engine but the first also resumes from where the first was after its second step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import cpuinfo
import torch

from mvlm.batch import Batch, MetricAccumulator
from mvlm.runtime import dist
from mvlm.training.engine import Engine
from mvlm.training.logging.metrics import reported
from tests.training.parity_worker import built, configuration, engine_of, steps_of
from tests.training.saved_tensors import whole_tensors

DECAY = 0.9  # of the average
SOME = ("temperature.value", "mlm_head.classifier.weight", "mlm_head.classifier.bias", "match_head.classifier.bias")
KEPT = 2  # the step that is rolled back to, of four


def run(shards: str, content: dict[str, Any], overrides: list[str], first: dict[str, Any]) -> dict[str, Any]:
    world = dist.world()
    config = configuration(shards, max(4, 16 // (world * 2)), overrides)  # two micro-batches a rank
    model, loader = built(config, dist.rank(), world)
    given = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    engine = engine_of(model, config, content, world)
    batches = steps_of(loader)
    at_start = kept(engine)
    averages = {name: weight.double() for name, weight in of_some(engine, "weight").items()}
    to_kept = trained(engine, batches, 0, KEPT, averages)
    at_kept = kept(engine)
    undisturbed = trained(engine, batches, KEPT, len(batches), averages)
    end = digest(whole_tensors(engine))

    average_errors = errors(engine, averages) if engine.has_ema else math.nan
    with engine.ema_weights():
        exchanged = digest(whole_tensors(engine))
        computed_with = errors(engine, averages, "weight") if engine.has_ema else math.nan
    tensors = dict(whole_tensors(engine))
    after_exchange = digest(tensors.items())
    frozen = [torch.equal(whole["weight"], given[name]) for name, whole in tensors.items() if len(whole) == 1]

    engine.objectives = dataclasses.replace(config.objectives, text=float("nan"))
    engine.step(batches[0], 0.5, 0)
    poisoned = {"grad_norm": norm(engine), "overflowed": engine.overflowed}
    engine.objectives = config.objectives
    restore(engine, at_kept)
    found = digest(whole_tensors(engine))
    engine.engine.eval()  # as before an evaluation
    repeated = trained(engine, batches, KEPT, len(batches))
    is_training = engine.model.training
    end_again = digest(whole_tensors(engine))

    restore(engine, at_start)
    from_the_start = trained(engine, batches, 0, KEPT)
    first.setdefault("kept", at_kept)
    fill(engine, first["kept"])
    return {
        "to_kept": to_kept,
        "undisturbed": undisturbed,
        "repeated": repeated,
        "from_the_start": from_the_start,
        "poisoned": poisoned,
        "is_training": is_training,
        "kept": [at_kept["digest"], found],
        "end": [end, end_again],
        "firsts": [first["kept"]["digest"], digest(whole_tensors(engine))],
        "after_firsts": trained(engine, batches, KEPT, len(batches)),
        "averages": [len(averages), average_errors, computed_with],
        "exchanged": [end, exchanged, after_exchange],
        "frozen": frozen,
        "groups": [[g["name"], g["lr"], g["weight_decay"]] for g in engine.engine.optimizer.param_groups],
        "optimizer": type(engine.engine.basic_optimizer).__name__,
    }


def trained(
    engine: Engine, batches: list[list[Batch]], start: int, stop: int, averages: dict[str, torch.Tensor] | None = None
) -> list[dict[str, Any]]:
    """One line a step with all its numbers; `averages` follow the weights in float64."""
    lines = []
    for step in range(start, stop):
        tally, before = MetricAccumulator(), engine.updates
        losses = engine.step(batches[step], 0.5, step, tally)
        if averages is not None and engine.updates > before:
            for name, weight in of_some(engine, "weight").items():
                averages[name] = DECAY * averages[name] + (1 - DECAY) * weight.double()
        means = {name: (dist.all_reduce(loss) / dist.world()).item() for name, loss in losses.items()}
        facts = {"grad_norm": norm(engine), "updates": engine.updates, "overflowed": engine.overflowed}
        lines.append(means | facts | reported(tally) | {"loss_scale": engine.loss_scale_state()})
    return lines


def of_some(engine: Engine, key: str) -> dict[str, torch.Tensor]:
    """Whole tensors of four parameters: gathering all after every step would take most of the time."""
    some = [(name, parameter) for name, parameter in engine.parameters() if name in SOME]
    return {name: engine._state.read(parameter)[key].cpu().clone() for name, parameter in some}


def errors(engine: Engine, averages: dict[str, torch.Tensor], key: str = "ema") -> float:
    """The largest difference from the averages in float64."""
    return max((found - averages[name]).abs().max().item() for name, found in of_some(engine, key).items())


def norm(engine: Engine) -> float:
    assert engine.grad_norm is not None
    return float(engine.grad_norm)


def kept(engine: Engine) -> dict[str, Any]:
    whole = dict(whole_tensors(engine))
    return {
        "updates": engine.updates,
        "loss_scale": engine.loss_scale_state(),
        "whole": whole,
        "digest": digest(whole.items()),
    }


def restore(engine: Engine, state: dict[str, Any]) -> None:
    engine.prepare_state(state["updates"])
    for name, parameter in engine.parameters():
        engine.write(parameter, state["whole"][name])
    if state["loss_scale"]:
        engine.set_loss_scale_state(state["loss_scale"])


def fill(engine: Engine, state: dict[str, Any]) -> None:
    """As `restore`, the way a checkpoint is resumed: each rank asks only for its own part of a tensor."""
    engine.prepare_state(state["updates"])
    for name, parameter in engine.parameters():
        whole = state["whole"][name]
        engine.fill(parameter, list(whole), partial(piece, whole))
    engine.finish_filling()
    if state["loss_scale"]:
        engine.set_loss_scale_state(state["loss_scale"])


def piece(whole: dict[str, torch.Tensor], key: str, start: int, stop: int) -> torch.Tensor:
    return whole[key].flatten()[start:stop]


def digest(named: Iterable[tuple[str, dict[str, torch.Tensor]]]) -> str:
    """Covers every bit of these tensors, except that -0 counts as 0: summing the ranks' shares turns it into 0."""
    total = hashlib.sha256()
    for name, tensors in named:
        for key, tensor in tensors.items():
            total.update(f"{name} {key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update((tensor + 0.0).numpy().tobytes())
    return total.hexdigest()


def describe_cpu_once() -> None:
    """DeepSpeed's AdamW for CPUs asks py-cpuinfo four times, a second of CPU each."""
    cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)


def try_cases(shards: str, cases: dict[str, Any], file: Path, overrides: list[str]) -> None:
    """What each rank runs; `cases` are DeepSpeed configurations by name, and `file` gets their results by name."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True  # a CPU can, slowly
    torch.set_num_threads(1)
    describe_cpu_once()
    dist.init()
    first: dict[str, Any] = {}
    results = {name: run(shards, content, overrides, first) for name, content in cases.items()}
    assert "torch._inductor.compile_fx" not in sys.modules  # a second of every rank's start
    if dist.rank() == 0:
        file.write_text(json.dumps(results))
    dist.barrier()
    dist.close()
