"""Chooses the ZeRO stage, hpZ, split of layers and recomputation with the fastest step, and says what others cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mvlm.errors import UserError
from mvlm.estimate.advice import WORTH
from mvlm.estimate.communication import Step
from mvlm.estimate.plan import Planner

SPLITS = (1, 2, 4, 8)
"""Ranks that may split layers, if a node has so many and they divide heads and features."""
GB = 1e9


@dataclass(frozen=True)
class Option:
    """One way to lay out a run, with the largest micro-batch that fits.

    Attributes:
        hpz: GPUs of the second partition of ZeRO stage 3; 1 = none.
        pairs: of a micro-batch; 0 = not even the smallest fits.
        bytes: on a GPU at the peak, with the smallest micro-batch if none fits.
        step: None if none fits.
    """

    stage: int
    hpz: int
    split: int
    recompute: float
    pairs: int
    bytes: float
    step: Step | None

    @property
    def name(self) -> str:
        words = [f"ZeRO-{self.stage}" + (f" with hpZ {self.hpz}" if self.hpz > 1 else "")]
        words += [f"layers split by {self.split}"] if self.split > 1 else []
        words += [f"recompute {self.recompute:g}"] if self.recompute else []
        return ", ".join(words)

    @property
    def layout(self) -> tuple[int, float, int, int]:
        """A key for sorting: what changes the least comes first."""
        return self.split, self.recompute, self.stage, self.hpz


def choose(planner: Planner) -> dict[str, Any]:
    """The best option, and what others cost and why: its other stages, and the fastest option for each other number of
    ranks that split layers, or other share that is recomputed.

    Blocks are recomputed, and layers split among more ranks, only if a step would otherwise take several micro-batches.
    Of options within a few percent of each other the one that changes the least is taken, and stage 3 only if no lower
    one fits: DeepSpeed's host work is not in the plan.
    """
    found: list[Option] = []
    shares = sorted({0.0, planner.train.recompute, 1.0})
    for split, recompute in ((split, share) for split in _splits(planner) for share in shares):
        found += _options(planner, split, recompute)
        if any(option.pairs * (planner.request.gpus // split) >= planner.train.global_batch for option in found):
            break
    fitting = [option for option in found if option.step]
    if not fitting:
        least = min(found, key=lambda option: option.bytes)
        return {"best": None, "least": least.name, "least_bytes": least.bytes, "usable_bytes": planner.room}
    below = [option for option in fitting if option.stage < 3] or fitting
    fastest = min(_seconds(option) for option in below)
    near = [option for option in below if _seconds(option) <= fastest * (1 + WORTH)]
    best = min(near, key=lambda option: option.layout)
    for split, recompute in ((2, best.recompute), (best.split, 1.0)):  # to say what they would cost
        if not any((option.split, option.recompute) == (split, recompute) for option in found):
            found += _options(planner, split, recompute) if split in _splits(planner) else ()
    others = [option for option in found if option != best and option.layout[:2] == best.layout[:2]]
    for split, recompute in dict.fromkeys(option.layout[:2] for option in found):
        if (split == best.split) != (recompute == best.recompute):
            alike = (option for option in found if option.layout[:2] == (split, recompute))
            others.append(min(alike, key=lambda option: (_seconds(option), option.bytes)))
    return {
        "best": _told(best, best, planner.room),
        "others": [_told(option, best, planner.room) for option in others],
    }


def choice_text(choice: dict[str, Any]) -> str:
    """The result of `choose`, in lines."""
    if not choice["best"]:
        need, room = choice["least_bytes"] / GB, choice["usable_bytes"] / GB
        return (
            f"\nchoice         nothing fits: {choice['least']} comes nearest, with {need:.1f} GB of {room:.1f}; use "
            "more or larger GPUs, or offload.\n"
        )
    best, others = choice["best"], choice["others"]
    width = max(len(option["name"]) for option in (best, *others)) + 2
    lines = [
        "",
        f"choice         {best['name']}, micro-batch {best['micro_batch']}: {best['seconds'] * 1e3:,.1f} ms per step, "
        f"{best['bytes'] / GB:.1f} GB per GPU; the others, each with its largest micro-batch",
        *(f"  {option['name']:{width}}{option['why']}" for option in others),
    ]
    return "\n".join(lines) + "\n"


def _splits(planner: Planner) -> Iterator[int]:
    """One after another, as dividing a model takes a while and the first ones are mostly enough."""
    for split in SPLITS:
        if planner.request.per_node % split == 0 and _can_split(planner, split):
            yield split


def _can_split(planner: Planner, split: int) -> bool:
    if split == 1:
        return True
    try:
        _planner(planner, split, 0.0, 1, 1)
    except UserError:
        return False
    return True


def _planner(planner: Planner, split: int, recompute: float, stage: int, hpz: int) -> Planner:
    """The planner of the same run in another layout, for its `largest` micro-batch."""
    request = planner.request
    zero = dict(request.content.get("zero_optimization") or {})
    for name in ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param"):
        zero.pop(name, None)
    zero |= {"stage": stage, "zero_hpz_partition_size": hpz}
    content = request.content | {"zero_optimization": zero, "tensor_parallel": {"autotp_size": split}}
    train = dataclasses.replace(request.train, recompute=recompute, micro_batch=1)
    return Planner(dataclasses.replace(request, content=content, train=train), planner.whole)


def _options(planner: Planner, split: int, recompute: float) -> Iterator[Option]:
    for stage in range(4 if split == 1 else 3):
        for hpz in (1, planner.request.per_node) if stage == 3 and planner.request.nodes > 1 else (1,):
            try:
                other = _planner(planner, split, recompute, stage, hpz)
            except UserError:  # such as bf16 at stage 0 with split layers
                continue
            pairs = other.largest
            need = other.memory(other.zero, pairs or min(other.allowed)).total
            step = None
            if pairs:
                accumulation = other.train.global_batch // (other.ranks * pairs)
                step = other.step(other.zero, other.ranks, pairs, accumulation)
            yield Option(stage, hpz, split, recompute, pairs, need, step)


def _seconds(option: Option) -> float:
    return option.step.seconds if option.step else math.inf


def _told(option: Option, best: Option, room: float) -> dict[str, Any]:
    told: dict[str, Any] = {"name": option.name, "micro_batch": option.pairs, "bytes": option.bytes}
    told |= {"stage": option.stage, "hpz": option.hpz, "tensor_parallel": option.split, "recompute": option.recompute}
    if not option.step:
        why = f"does not fit: {option.bytes / GB:.1f} GB of {room / GB:.1f} with the smallest micro-batch"
        return told | {"seconds": None, "why": why}
    return told | {"seconds": option.step.seconds, "why": _why(option, best)}


def _why(option: Option, best: Option) -> str:
    """What an option costs, and what most of that goes to."""
    there, here = _parts(option), _parts(best)
    more = {name: seconds - here[name] for name, seconds in there.items()}
    most = max(more, key=lambda name: more[name])
    cost = _seconds(option) / _seconds(best) - 1
    reason = f": {most} {more[most] * 1e3:,.1f} ms more" if more[most] > 0.001 * _seconds(best) else ""
    return (
        f"{_seconds(option) * 1e3:,.1f} ms, {cost * 100:+.0f} %{reason}; micro-batch {option.pairs}, "
        f"{option.bytes / GB:.1f} GB"
    )


def _parts(option: Option) -> dict[str, float]:
    """A step's seconds by what they go to."""
    assert option.step
    shown = {f"{name} on the wire": exchange.exposed for name, exchange in option.step.exchanges.items()}
    return {"computing": option.step.compute, "updating": option.step.update} | shown
