"""A run planned before it starts: size, work, memory, time and communication, and what follows from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from mvlm.config.schema import Config
from mvlm.errors import UserError
from mvlm.estimate.activations import longest, pieces
from mvlm.estimate.cards import USABLE, Card
from mvlm.estimate.communication import Fabric, Step, step_time
from mvlm.estimate.encoders import Shape, shape_of
from mvlm.estimate.flops import FULL, forward_flops, step_flops
from mvlm.estimate.kept import Arithmetic
from mvlm.estimate.memory import Memory, peak
from mvlm.training.blocks import evenly
from mvlm.training.schedule import schedule_steps
from mvlm.training.zero.config import RunSide, micro_batches, resolve, usable_ranks
from mvlm.training.zero.memory import Zero, states

STAGES = (0, 1, 2, 3)
SCALES = (8, 64, 512, 4096)
LARGEST = 1 << 20
"""Micro-batch beyond which nobody looks."""


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        content, names: the DeepSpeed JSON, and the paths of it and of the run TOML.
        corpus: pairs an epoch.
        mfu: model FLOPs utilisation, the share of the card's peak that a step's products are taken to reach.
    """

    config: Config
    content: dict[str, Any]
    names: tuple[str, str]
    card_name: str
    card: Card
    nodes: int
    per_node: int
    corpus: int
    mfu: float

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node


class Planner:
    """Answers of one request; `shape` may be given where several requests have the same model."""

    def __init__(self, request: Request, shape: Shape | None = None) -> None:
        self.request, self.config = request, request.config
        self.shape = shape or shape_of(self.config)
        self.precision = _precision(request)
        self.ranks = usable_ranks(self.config.train, self.config.objectives, request.gpus)
        self.zero = self._zero_of(request.content)
        self.work = longest(self.config, self.shape)
        self.how = Arithmetic.on_gpu(self.zero.element)
        self.room = USABLE * request.card.memory
        self.largest = self.largest_that_fits(self.zero)
        given = self.config.train.micro_batch
        share = self.config.train.global_batch // self.ranks
        self.pairs = (self.largest or min(self.allowed)) if given == "auto" else int(given or share)

    @property
    def allowed(self) -> list[int]:
        """Micro-batches that divide the global batch, smallest first."""
        return micro_batches(self.config.train, self.config.objectives, self.ranks)

    @property
    def accumulation(self) -> int:
        return self.config.train.global_batch // (self.ranks * self.pairs)

    def _zero_of(self, content: dict[str, Any]) -> Zero:
        """The DeepSpeed configuration as a run on these GPUs would resolve it."""
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
        for section in ("bf16", "fp16"):
            if (content.get(section) or {}).get("enabled") == "auto":
                content[section]["enabled"] = section == "bf16" and self.precision == "bf16"
        zero = content.get("zero_optimization") or {}
        if (zero.get("offload_param") or {}).get("nvme_path") == "auto":
            zero["offload_param"] = zero["offload_param"] | {"nvme_path": "/"}  # of the nodes, not of this machine
        if zero.get("zero_hpz_partition_size") == "auto":
            zero["zero_hpz_partition_size"] = self.request.per_node if self.request.nodes > 1 else 1
        train, objectives, optim = self.config.train, self.config.objectives, self.config.optim
        steps = schedule_steps(train, optim, self.request.corpus)
        folder, parameters = self.config.run.dir, self.shape.total
        run = RunSide(self.request.names, folder, train, objectives, optim, self.ranks, steps, parameters)
        return Zero.of(resolve(content, run))

    def memory(self, zero: Zero, pairs: int) -> Memory:
        """At the peak of a step, on a rank's GPU."""
        accumulation = self.config.train.global_batch // (self.ranks * pairs)
        held = states(self.shape.total, zero, self.ranks, accumulation)
        return peak(self.config, self.shape, self.work, self.how, held, pairs)

    def fits(self, zero: Zero, pairs: int) -> bool:
        return self.memory(zero, pairs).total <= self.room

    def largest_that_fits(self, zero: Zero) -> int:
        """Of the micro-batches that divide the global batch; 0 = none."""
        return max((pairs for pairs in self.allowed if self.fits(zero, pairs)), default=0)

    def held(self) -> int:
        """The largest micro-batch that a GPU holds, whatever the global batch is; 0 = none."""
        unit = self.allowed[0]
        low, high = 0, LARGEST // unit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._holds(middle * unit) else (low, middle - 1)
        return low * unit

    def _holds(self, pairs: int) -> bool:
        held = states(self.shape.total, self.zero, self.ranks, 1)
        return peak(self.config, self.shape, self.work, self.how, held, pairs).total <= self.room

    def flops(self) -> dict[str, float]:
        """Of a pair with the longest caption, forward and backward, by component; see mvlm/estimate/flops.py."""
        return step_flops(self.shape.sizes, self.work, self.config.objectives, FULL)

    def step(self, zero: Zero, ranks: int, pairs: int, accumulation: int) -> Step:
        """The time of a step."""
        forward = sum(forward_flops(self.shape.sizes, self.work, self.config.objectives, FULL).values())
        backward = sum(self.flops().values()) - forward + self._recomputed(forward)
        speed = self.request.mfu * self.request.card.peak(self.precision)
        fabric = Fabric(self.request.card, ranks, min(self.request.per_node, ranks))
        seconds = forward * pairs / speed, backward * pairs / speed
        return step_time(self.config, self.shape, zero, fabric, *seconds, accumulation, pairs)

    def _recomputed(self, forward: float) -> float:
        """Operations of blocks that backward computes again."""
        blocks = [piece for piece in pieces(self.config, self.shape, self.work, self.how) if piece.block]
        return forward * len(evenly(blocks, self.config.train.recompute)) / len(blocks)

    def stage(self, stage: int) -> Zero:
        """The same configuration at another ZeRO stage, without offload."""
        return dataclasses.replace(
            self.zero,
            stage=stage,
            secondary=1,
            overlap=True,
            optimizer_on_host=False,
            weights_on_host=False,
        )


def _precision(request: Request) -> str:
    """In which a step computes: what the JSON enables, or bf16 where that is "auto" and the card has it.

    Raises:
        UserError: the card has not what is enabled.
    """
    card, name = request.card, request.names[0]
    for section in ("bf16", "fp16"):
        enabled = (request.content.get(section) or {}).get("enabled")
        if enabled == "auto" and section == "bf16" and card.bf16:
            return "bf16"
        if enabled is True:
            if not card.peak(section):
                raise UserError(
                    f"{name} enables {section}, which {request.card_name} does not compute: plan with "
                    "ds_configs/fp16.json."
                )
            return section
    return "fp32"


def as_json(planner: Planner) -> dict[str, Any]:
    """All that is planned, in bytes, seconds and operations."""
    from mvlm.estimate.advice import advice

    request, config, zero = planner.request, planner.config, planner.zero
    memory = planner.memory(zero, planner.pairs)
    step = planner.step(zero, planner.ranks, planner.pairs, planner.accumulation)
    steps, _ = schedule_steps(config.train, config.optim, request.corpus)
    pairs_per_s = config.train.global_batch / step.seconds
    seconds = steps * step.seconds
    flops = planner.flops()
    return {
        "gpu": request.card_name,
        "gpus": request.gpus,
        "ranks": planner.ranks,
        "nodes": request.nodes,
        "precision": planner.precision,
        "zero_stage": zero.stage,
        "parameters": planner.shape.parameters | {"total": planner.shape.total},
        "flops_per_pair": flops | {"total": sum(flops.values())},
        "global_batch": config.train.global_batch,
        "micro_batch": planner.pairs,
        "accumulation": planner.accumulation,
        "largest_micro_batch": planner.largest,
        "held_micro_batch": planner.held(),
        "memory_bytes": {name: value for name, value in vars(memory).items() if name != "moment"}
        | {"total": memory.total, "usable": planner.room},
        "peak_in": memory.moment,
        "fits": memory.total <= planner.room,
        "mfu": request.mfu,
        "pairs_per_s": pairs_per_s,
        "step_seconds": vars(step) | {"total": step.seconds},
        "steps": steps,
        "epochs": steps * config.train.global_batch / request.corpus,
        "hours": seconds / 3600,
        "gpu_hours": seconds / 3600 * request.gpus,
        "efficiency": efficiency(planner),
        "advice": advice(planner),
    }


def efficiency(planner: Planner) -> dict[str, dict[str, float]]:
    """By stage and number of GPUs, at the planned micro-batch and accumulation: the global batch grows with them."""
    return {
        f"zero{stage}": {
            str(gpus): planner.step(zero, gpus, planner.pairs, planner.accumulation).efficiency for gpus in SCALES
        }
        for stage, zero in (
            (stage, planner.zero if stage == planner.zero.stage else planner.stage(stage)) for stage in STAGES[1:]
        )
    }


def round_figures(value: Any, digits: int = 4) -> Any:
    """Every number in a tree rounded to so many significant digits; whole numbers stay."""
    if isinstance(value, dict):
        return {key: round_figures(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [round_figures(item, digits) for item in value]
    if isinstance(value, float):
        return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return value
