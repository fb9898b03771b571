"""The time of a step's collectives, and how much of it computing does not hide.

DeepSpeed 0.19 sends the following (benchmarks/comm counts it), in weights and gradients of a rank's precision. Below
stage 3 it all-reduces each bucket while backward goes on; at stage 0 only because it is called early
(mvlm/training/zero/reduction.py). Stages 1 and 2 keep a rank's share of the result, and at the end all-gather each
parameter group's updated weights, which nothing hides. Stage 2 reduces after every micro-batch, stages 0 and 1 once a
step. Stage 3 gathers weights for forward, and for backward those that it has not kept, and reduce-scatters, all in
every micro-batch. With `use_multi_rank_bucket_allreduce` off, stages 1 and 2 send half the bytes, in a reduction to
each rank of its share of each group, one after the other. `reduce_scatter` and `allgather_bucket_size` change nothing.
Muon's matrices are summed whole in fp32 once a step from stage 1 on (mvlm/training/zero/muon.py). Ranks that split
layers sum up the result of each attention and feed-forward, and the gradients at its input
(mvlm/training/tensor_parallel.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mvlm.estimate.count import FakeModel
from mvlm.estimate.fabric import Fabric
from mvlm.runtime.background import rounds
from mvlm.training.contrast import ranks_at_once
from mvlm.training.zero.memory import FP32, Zero, elements
from mvlm.training.zero.muon import AT_ONCE

UPDATE_BYTES = 3 * 2 * FP32 + FP32 + 2
"""Bytes that AdamW moves per weight: itself and two moments both ways, its gradient, its copy in 16 bits."""
NUMBERS = 8.0
"""Bytes of an all-reduce of one number or a few, such as a norm; mvlm has two in a step, DeepSpeed the others."""
HOST_MESSAGE = 50e-6
"""Seconds of a message between hosts over TCP, with waking the threads at both ends; not measured between machines."""


@dataclass(frozen=True)
class Collectives:
    """Seconds of a step's collectives of one kind, and those of them that computing does not hide."""

    seconds: float
    exposed: float


@dataclass(frozen=True)
class Step:
    """Seconds of a rank's step.

    Attributes:
        compute: products alone, at the stated share of the peak.
        update: AdamW, at the memory's bandwidth, and Muon's products.
        exchanges: of "gradients", "weights" (gathered again), "contrast", "negatives" (of ITM, if its groups span
            ranks), "layers" (that ranks split among them), "matrices" (of Muon) and "numbers" (norms and counts).
        sent: bytes of gradients, weights, contrastive features and negatives' tokens that a rank takes part in moving.
    """

    compute: float
    update: float
    exchanges: dict[str, Collectives]
    sent: float

    @property
    def communication(self) -> float:
        return sum(exchange.seconds for exchange in self.exchanges.values())

    @property
    def exposed(self) -> float:
        return sum(exchange.exposed for exchange in self.exchanges.values())

    @property
    def seconds(self) -> float:
        return self.compute + self.update + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the speed that the GPUs would have if none waited for another."""
        return (self.compute + self.update) / self.seconds


@dataclass(frozen=True)
class Work:
    """What a rank computes in a step.

    Attributes:
        forward, backward: seconds of a micro-batch.
        fused: of `forward`, seconds after the encoders.
        accumulation: micro-batches.
        pairs: of a micro-batch.
        spanned: ranks that an ITM group spans.
        muon: seconds of an update's products.
        summed, summing: bytes that ranks which split layers sum up in a micro-batch, and seconds that they wait for it.
    """

    forward: float
    backward: float
    fused: float
    accumulation: int
    pairs: int
    spanned: int
    muon: float = 0.0
    summed: float = 0.0
    summing: float = 0.0


def step_time(model: FakeModel, zero: Zero, fabric: Fabric, work: Work) -> Step:
    """The seconds of a step of each rank of `fabric`."""
    times, spanned = work.accumulation, work.spanned
    contrast = contrast_of(model, fabric, fabric.ranks * times * work.pairs)
    # With several micro-batches the first runs meanwhile; at stage 3 the network is busy with weights.
    meanwhile = 0.0 if zero.stage == 3 else work.forward if times > 1 else work.fused
    among = Fabric(fabric.card, spanned, min(fabric.per_node, spanned))
    tokens = float(2 * spanned * work.pairs * sum(model.token_numbers) * zero.element) if spanned > 1 else 0.0
    negatives = times * among.gather(tokens, times=6)  # there and back, of two kinds; draws and their features
    small = small_reductions(zero.stage, len(model.groups), model.objectives.itc > 0) * fabric.reduce(NUMBERS)
    split = FP32 * elements(model.matrices) if zero.stage else 0.0
    whole = fabric.reduce(split, math.ceil(split / (FP32 * AT_ONCE)))
    exchanges = (_partitioned if zero.stage == 3 else _replicated)(model, zero, fabric, work) | {
        "contrast": Collectives(contrast.seconds, contrast.seconds - min(contrast.ahead, meanwhile)),
        "negatives": Collectives(negatives, negatives),
        "layers": Collectives(times * work.summing, times * work.summing),
        "matrices": Collectives(whole, whole),
        "numbers": Collectives(small, small),
    }
    sent = _sent(model, zero, times) + contrast.sent + times * tokens + 2 * split if fabric.ranks > 1 else 0.0
    sent += 2 * times * work.summed
    moved = UPDATE_BYTES * model.trained - 2 * FP32 * elements(model.matrices)
    update = moved / (fabric.ranks if zero.stage else 1) / fabric.card.bandwidth + work.muon
    return Step(times * (work.forward + work.backward), update, exchanges, sent)


def _replicated(model: FakeModel, zero: Zero, fabric: Fabric, work: Work) -> dict[str, Collectives]:
    """Below stage 3, where weights stay on every rank."""
    weights, pieces = model.trained * zero.element, math.ceil(model.trained / zero.reduce_bucket)
    if zero.all_reduces or not zero.stage:
        reduced = fabric.reduce(weights, pieces)
    else:
        pieces += fabric.ranks * len(model.groups)  # a bucket may end within a share, whose rank then has two pieces
        reduced = fabric.deliver(weights, pieces)
    times = work.accumulation if zero.stage == 2 else 1
    shown = _shown(reduced, pieces, work.backward if zero.overlap else 0.0)
    gathered = sum(fabric.gather(group * zero.element) for group in model.groups) if zero.stage else 0.0
    return {"gradients": Collectives(times * reduced, times * shown), "weights": Collectives(gathered, gathered)}


def _partitioned(model: FakeModel, zero: Zero, fabric: Fabric, work: Work) -> dict[str, Collectives]:
    """At stage 3."""
    weights, buckets = model.total * zero.element, math.ceil(model.trained / zero.reduce_bucket)
    pieces = max(math.ceil(model.total / zero.prefetch_bucket), model.blocks)
    near = Fabric(fabric.card, min(zero.secondary, fabric.ranks), fabric.per_node) if zero.secondary > 1 else fabric
    again = gathered_again(model.total, zero.reuse, work.accumulation)
    there, back = fabric.gather(weights, pieces), near.gather(again * weights, pieces) if again else 0.0
    scattered = fabric.gather(model.trained * zero.element, buckets)
    hidden_there, hidden_back = (work.forward, work.backward) if zero.overlap else (0.0, 0.0)
    shown_there = _shown(there, pieces, hidden_there)
    shown_back = _shown(back + scattered, pieces, hidden_back)
    times, share = work.accumulation, scattered / (back + scattered) if scattered else 0.0
    return {
        "gradients": Collectives(times * scattered, times * shown_back * share),
        "weights": Collectives(times * (there + back), times * (shown_there + shown_back * (1 - share))),
    }


def _sent(model: FakeModel, zero: Zero, accumulation: int) -> float:
    """Bytes of weights and gradients that a rank takes part in moving."""
    weights, gradients = float(model.total * zero.element), float(model.trained * zero.element)
    if zero.stage == 3:
        return ((1 + gathered_again(model.total, zero.reuse, accumulation)) * weights + gradients) * accumulation
    each = 2 if zero.all_reduces or not zero.stage else 1
    return gradients * (each * (accumulation if zero.stage == 2 else 1) + (1 if zero.stage else 0))


def gathered_again(parameters: int, reuse: int, accumulation: int) -> float:
    """The share of the weights that stage 3 gathers again for backward: those that are next used after more others than
    it keeps weights for. With several micro-batches it follows no order that it has seen, and keeps nothing."""
    return 1.0 if accumulation > 1 else max(0.0, 1 - reuse / 2 / parameters)


def small_reductions(stage: int, groups: int, itc: bool) -> int:
    """All-reduces of a few numbers in a step: what losses are divided by, and the temperature's gradient; and
    DeepSpeed's norm of each group and its check for overflows."""
    return 1 + itc + (0, groups + 1, groups + 1, groups)[stage]


def agreement(ranks: int) -> tuple[int, float]:
    """Messages that a step's exchange among ranks takes, one after the other, and its seconds, which the step hides."""
    return rounds(ranks), rounds(ranks) * HOST_MESSAGE


def _shown(seconds: float, pieces: int, hidden: float) -> float:
    """Seconds that `hidden` seconds of computing do not hide: at least those of one piece, which computing awaits."""
    alone = seconds / pieces
    return alone + max(0.0, seconds - alone - hidden)


@dataclass(frozen=True)
class ContrastExchange:
    """What ITC exchanges in a step (mvlm/model/losses/itc.py).

    Attributes:
        blocks: in which the features of all pairs come, with a ring one per rank; 0 = nothing is exchanged.
        sent: bytes that a rank takes part in moving: features and identities, which come again for the softmax if there
            are several blocks, and log-sum-exps of the softmax.
        seconds: of that.
        ahead: of `seconds`, those of the first block, which travels while the forward pass goes on.
    """

    blocks: int
    sent: float
    seconds: float
    ahead: float


def contrast_of(model: FakeModel, fabric: Fabric, pairs: int) -> ContrastExchange:
    """The exchange for a global batch of `pairs`."""
    if not model.objectives.itc or fabric.ranks == 1:
        return ContrastExchange(0, 0.0, 0.0, 0.0)
    is_softmax = model.objectives.contrastive == "softmax"
    exchange = model.objectives.itc_exchange
    blocks = math.ceil(fabric.ranks / ranks_at_once(pairs, fabric.ranks, exchange))
    times = 2 if is_softmax and blocks > 1 else 1
    features, more = pairs * feature_bytes(model.contrastive_width), pairs * 2.0 * FP32 * is_softmax
    if exchange == "ring":
        hops, others = fabric.ranks - 1, 1 - 1 / fabric.ranks
        seconds = times * fabric.hand_on(features * others, hops) + fabric.hand_on(more * others, hops)
        sent = others * (times * features + more)
        return ContrastExchange(blocks, sent, seconds, fabric.hand_on(features / fabric.ranks, 1))
    each = fabric.reduce(features / blocks)
    seconds = times * blocks * each + fabric.reduce(more, blocks)
    return ContrastExchange(blocks, times * features + more, seconds, each)


def feature_bytes(width: int) -> float:
    """Bytes of a pair's contrastive features and identities."""
    return 2.0 * width * FP32 + 16.0
