"""Plans a run before it starts: size, work, memory, time and communication."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from mvlm.config.schema import Optim, Train
from mvlm.errors import UserError
from mvlm.estimate.cards import USABLE, Card
from mvlm.estimate.communication import ContrastExchange, Step, Work, contrast_of, step_time
from mvlm.estimate.count import FakeModel
from mvlm.estimate.fabric import Fabric
from mvlm.estimate.memory import Memory, contrastive_bytes, peak
from mvlm.training.blocks import evenly
from mvlm.training.schedule import schedule_steps
from mvlm.training.span import exchange_bytes, span_shape
from mvlm.training.zero.config import RunSide, micro_batches, resolve, usable_ranks
from mvlm.training.zero.fill import OFFLOADS
from mvlm.training.zero.json_file import tensor_ranks
from mvlm.training.zero.memory import States, Zero, states
from mvlm.training.zero.muon import operations

LARGEST = 1 << 20
"""The largest micro-batch that is tried."""


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        content, names: the DeepSpeed JSON, and the paths of it and of the run TOML.
        corpus: pairs per epoch.
        mfu: model FLOPs utilisation, the share of the card's peak that a step's products are assumed to reach.
    """

    train: Train
    optim: Optim
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
    """Answers one request, about a model that several requests may share.

    Attributes:
        whole: the model; `model`: what a rank has of it.
        split: ranks per replica, which split the layers of its blocks.
        ranks: replicas, each of which has its own pairs.
    """

    def __init__(self, request: Request, model: FakeModel) -> None:
        self.request, self.train, self.whole = request, request.train, model
        self.split = tensor_ranks(request.content)
        self.model = model.divided(self.split) if self.split > 1 else model
        self.precision = precision_of(request.content, request.names[0], request.card_name, request.card)
        self.ranks = usable_ranks(self.train, request.gpus, self.split) // self.split
        self.zero = self._zero_of(request.content)
        self.room = USABLE * request.card.memory

    @functools.cached_property
    def largest(self) -> int:
        """The largest micro-batch that fits; 0 = none."""
        return self.largest_that_fits(self.zero)

    @functools.cached_property
    def pairs(self) -> int:
        """Pairs of the planned micro-batch."""
        given, share = self.train.micro_batch, self.train.global_batch // self.ranks
        return (self.largest or min(self.allowed)) if given == "auto" else int(given or share)

    @property
    def allowed(self) -> list[int]:
        """Micro-batches that divide the global batch, smallest first."""
        return micro_batches(self.train, self.ranks)

    @property
    def accumulation(self) -> int:
        return self.train.global_batch // (self.ranks * self.pairs)

    def _zero_of(self, content: dict[str, Any]) -> Zero:
        """The DeepSpeed configuration as a run on these GPUs would resolve it."""
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
        for section in ("bf16", "fp16"):
            if (content.get(section) or {}).get("enabled") == "auto":
                content[section]["enabled"] = section == "bf16" and self.precision == "bf16"
        zero = content.get("zero_optimization") or {}
        for name in OFFLOADS:
            if (zero.get(name) or {}).get("nvme_path") == "auto":
                zero[name] = zero[name] | {"nvme_path": "/"}  # of the nodes, not of this machine
        if zero.get("zero_hpz_partition_size") == "auto":
            zero["zero_hpz_partition_size"] = self.request.per_node if self.request.nodes > 1 else 1
        train, optim = self.train, self.request.optim
        steps = schedule_steps(train, optim, self.request.corpus)
        folder = ""  # where a rank offloads to does not matter here
        run = RunSide(self.request.names, folder, train, optim, self.ranks, steps, self.whole.total)
        return Zero.of(resolve(content, run))

    def memory(self, zero: Zero, pairs: int) -> Memory:
        """Memory at the peak of a step, on a rank's GPU."""
        accumulation = self.train.global_batch // (self.ranks * pairs)
        return self._peak(zero, accumulation, pairs)

    def states(self, zero: Zero, accumulation: int) -> States:
        """What a rank keeps of the model itself."""
        model, ema = self.model, self.train.ema > 0
        frozen = model.total - model.trained
        return states(model.total, zero, self.ranks, accumulation, model.matrices, ema, frozen)

    def _peak(self, zero: Zero, accumulation: int, pairs: int) -> Memory:
        held = self.states(zero, accumulation)
        moments = self.model.moments(self.zero.element, self.train.recompute, self._foreign(pairs))
        image, text = self.model.token_numbers
        negatives = exchange_bytes(self.span(pairs), pairs, (image * zero.element, text * zero.element))
        contrastive = contrastive_bytes(self.model, pairs * accumulation, self.ranks)
        return peak(moments, held, contrastive, pairs, negatives)

    def span(self, pairs: int) -> tuple[int, int]:
        """Ranks that an ITM group spans, and successive micro-batches of each."""
        objectives, whole = self.model.objectives, self.train.global_batch
        return span_shape(objectives.group(whole), self.ranks, pairs) if objectives.itm else (1, 1)

    def _foreign(self, pairs: int) -> bool:
        """Whether negatives may be outside the micro-batch that draws them."""
        return self.span(pairs) != (1, 1)

    def fits(self, zero: Zero, pairs: int) -> bool:
        return self.memory(zero, pairs).total <= self.room

    def largest_that_fits(self, zero: Zero) -> int:
        """The largest that fits of the micro-batches that divide the global batch; 0 = none."""
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
        return self._peak(self.zero, 1, pairs).total <= self.room

    def step(self, zero: Zero, ranks: int, pairs: int, accumulation: int) -> Step:
        """The time of a step on so many replicas, `ranks`."""
        counted, shape = self.model.flops(self._foreign(pairs)), self.span(pairs)
        forward, whole = (sum(flops.values()) for flops in (counted.forward, counted.step))
        backward = whole - forward + forward * self._recomputed()
        fused = forward - counted.forward.get("vision", 0.0) - counted.forward.get("text", 0.0)
        forward += self.model.ahead() if shape[1] > 1 else 0.0
        speed = self.request.mfu * self.request.card.peak(self.precision) / pairs
        fabric = self._between(ranks)
        iterating = self.request.mfu * self.request.card.peak("fp32")
        muon = sum(operations(matrix) for group in self.model.matrices for matrix in group) / iterating
        summed, seconds = self._layers(pairs)
        work = Work(
            forward / speed, backward / speed, fused / speed, accumulation, pairs, shape[0], muon, summed, seconds
        )
        return step_time(self.model, zero, fabric, work)

    def contrast(self) -> ContrastExchange:
        """What ITC exchanges in a step of this plan."""
        return contrast_of(self.model, self._between(self.ranks), self.train.global_batch)

    def _between(self, ranks: int) -> Fabric:
        """The fabric between the ranks with the same place in so many replicas."""
        return Fabric(self.request.card, ranks, min(max(1, self.request.per_node // self.split), ranks))

    def _layers(self, pairs: int) -> tuple[float, float]:
        """Bytes that the ranks of a replica sum up in a micro-batch, and seconds that it takes."""
        if self.split == 1:
            return 0.0, 0.0
        sums = self.model.sums(self.train.recompute, self._foreign(pairs))
        count = sums.elements * pairs * self.zero.element
        within = Fabric(self.request.card, self.split, min(self.request.per_node, self.split))
        return count, within.reduce(count, sums.times)

    def _recomputed(self) -> float:
        """The share of the forward pass that backward computes again."""
        trained = list(range(self.model.trained_blocks))
        return len(evenly(trained, self.train.recompute)) / self.model.blocks

    @property
    def stages(self) -> range:
        """The ZeRO stages that such a run can have."""
        return range(4 if self.split == 1 else 3)

    def stage(self, stage: int) -> Zero:
        """The same configuration at another ZeRO stage, without offload."""
        return dataclasses.replace(
            self.zero,
            stage=stage,
            secondary=1,
            overlap=True,
            optimizer_on_host=False,
            weights_on_host=False,
            on_disk=frozenset(),
        )


def precision_of(content: dict[str, Any], name: str, card_name: str, card: Card) -> str:
    """The precision of a step: what the JSON enables, or bf16 if that is "auto" and the card has it.

    Args:
        content, name: the DeepSpeed JSON, and the path of it.

    Raises:
        UserError: the card does not compute in what is enabled.
    """
    for section in ("bf16", "fp16"):
        enabled = (content.get(section) or {}).get("enabled")
        if enabled == "auto" and section == "bf16" and card.bf16:
            return "bf16"
        if enabled is True:
            if not card.peak(section):
                raise UserError(
                    f"{name} enables {section}, which {card_name} does not compute: plan with ds_configs/fp16.json."
                )
            return section
    return "fp32"
