"""What a rank keeps of the model itself under each ZeRO stage (Rajbhandari et al. 2020), as DeepSpeed 0.19 keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvlm.training.zero.fill import OFFLOADS, low_precision
from mvlm.training.zero.muon import AT_ONCE
from mvlm.training.zero.share_reduction import reduces_shares

FP32 = 4
OFFLOADED = 4 * FP32
"""Bytes of a parameter whose update is offloaded: the weight, AdamW's two moments and the gradient."""
GATHERED = REUSED = 1_000_000_000
"""Elements if the JSON does not say: its stage3_max_live_parameters and stage3_max_reuse_distance."""


@dataclass(frozen=True)
class Zero:
    """A resolved DeepSpeed configuration, as far as memory and communication follow from it.

    Attributes:
        element: bytes of a weight, an activation and a gradient: 2 or 4.
        all_reduces: stages 1 and 2 all-reduce a bucket, of which each rank keeps its share; else each share is reduced
            to its rank.
        reduce_bucket, prefetch_bucket, gathered: elements.
        reuse: elements that may be used in between while stage 3 keeps gathered weights until their next use.
        secondary: ranks that hold another copy of all weights among them (hpZ); 1 = none.
        on_disk: of "offload_optimizer" and "offload_param", those that are offloaded to a disk.
        lays_shares: stage 1's gradients are put into shares as they come (mvlm/training/zero/share_reduction.py).
    """

    stage: int
    element: int
    overlap: bool
    all_reduces: bool
    reduce_bucket: int
    prefetch_bucket: int
    gathered: int
    reuse: int
    secondary: int
    contiguous: bool
    optimizer_on_host: bool
    weights_on_host: bool
    on_disk: frozenset[str] = frozenset()
    lays_shares: bool = False

    @classmethod
    def of(cls, resolved: dict[str, Any]) -> Zero:
        """From what `zero.config.resolve` gives."""
        zero = resolved["zero_optimization"]
        stage = zero["stage"]
        places = {name: (zero.get(name) or {}).get("device", "none") for name in OFFLOADS}
        return cls(
            stage=stage,
            element=2 if low_precision(resolved) else FP32,
            overlap=stage == 0 or zero.get("overlap_comm", stage == 3),
            all_reduces=zero.get("use_multi_rank_bucket_allreduce", True),
            reduce_bucket=int(zero["reduce_bucket_size"]),
            prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", zero["reduce_bucket_size"])),
            gathered=int(zero.get("stage3_max_live_parameters", GATHERED)),
            reuse=int(zero.get("stage3_max_reuse_distance", REUSED)),
            secondary=int(zero.get("zero_hpz_partition_size", 1)),
            contiguous=zero.get("contiguous_gradients", True),
            optimizer_on_host=places["offload_optimizer"] != "none",
            weights_on_host=places["offload_param"] != "none",
            on_disk=frozenset(name for name, place in places.items() if place == "nvme"),
            lays_shares=reduces_shares(resolved),
        )


@dataclass(frozen=True)
class States:
    """Bytes on a rank's device, and what it offloads.

    Attributes:
        weights: what the step computes with, including those that stage 3 gathers.
        gathered: those of `weights` that stage 3 gathers, released before the optimiser's step.
        gradients: at the end of a backward pass, except `share`.
        held: of `gradients`, from one micro-batch of a step to the next, or all the time.
        share: what gradients are reduced into, allocated from the first bucket of a backward pass on.
        averaged: gradients once they are reduced and the optimiser's step begins.
        optimizer: fp32 weights, both of AdamW's moments, of which Muon's matrices have one, and the weights' average.
        buckets: what gradients are reduced in, during a backward pass.
        update: in the optimiser's step alone: the fp32 gradient of what it updates at once or what Muon's iteration
            has, whichever is more; and the bucket that stage 3 keeps.
        host: in the memory of the rank's node.
        disk: in files of the rank's node.
    """

    weights: float
    gathered: float
    gradients: float
    held: float
    share: float
    averaged: float
    optimizer: float
    buckets: float
    update: float
    host: float = 0.0
    disk: float = 0.0


Shapes = Sequence[Sequence[tuple[int, int]]]
"""Of the matrices that Muon updates, by parameter group."""


def states(
    parameters: int,
    zero: Zero,
    ranks: int,
    accumulation: int,
    matrices: Shapes = (),
    ema: bool = False,
    frozen: int = 0,
) -> States:
    """Those of a model of so many parameters on each of `ranks`.

    Args:
        accumulation: micro-batches a step.
        ema: an average of the weights is kept besides the moments.
        frozen: of `parameters`, those that are not trained.
    """
    trained = parameters - frozen
    whole, share, several = float(trained * zero.element), trained / ranks, accumulation > 1
    weights, gathered = _weights(parameters, zero, ranks)
    averaged = share * zero.element if zero.stage else whole
    lays_own = zero.stage == 1 and zero.lays_shares
    lays_shares = zero.stage == 2 or (lays_own and ranks > 1)
    gradients = whole if zero.stage < 2 else averaged
    if lays_shares and not several:
        gradients = 0.0
    held = gradients if several or zero.stage == 3 else 0.0
    reduced = averaged if lays_shares else 0.0
    copies = (2 if zero.stage == 0 and zero.element == FP32 else 3) + ema
    mine = trained if zero.stage == 0 else share
    owned = elements(matrices) / (ranks if zero.stage else 1)
    optimizer = copies * FP32 * mine - FP32 * owned
    copies_gradients = zero.element != FP32 or (zero.stage > 0 and not lays_own)
    update = FP32 * (mine - owned) if copies_gradients else 0.0
    update = max(update, *(iteration(group, ranks if zero.stage else 0) for group in matrices), 0.0)
    if zero.optimizer_on_host:
        optimizer = update = 0.0
        if zero.stage < 3:
            gradients = held = held if zero.stage == 1 else 0.0
            averaged = reduced = 0.0
    buckets, kept = _buckets(trained, zero, ranks, several)
    host, disk = _offloaded(zero, share, several, ema, frozen / ranks)
    host += FP32 * frozen if zero.element != FP32 else 0  # as they were given, for checkpoints
    return States(weights, gathered, gradients, held, reduced, averaged, optimizer, buckets, update + kept, host, disk)


def _weights(parameters: int, zero: Zero, ranks: int) -> tuple[float, float]:
    """What the step computes with, and how much of that is gathered."""
    whole = float(parameters * zero.element)
    if zero.stage < 3:
        return whole, 0.0
    kept = 0.0 if zero.weights_on_host else whole / ranks
    kept += 0.0 if zero.secondary == 1 else whole / zero.secondary
    gathers = ranks > 1 or zero.weights_on_host
    gathered = float(min(parameters, zero.gathered) * zero.element) if gathers else 0.0
    return kept + gathered, gathered


def _buckets(parameters: int, zero: Zero, ranks: int, several: bool) -> tuple[float, float]:
    """Those of a backward pass, and how much of them is kept for good."""
    bucket = float(min(zero.reduce_bucket, parameters) * zero.element)
    if ranks == 1 and (zero.stage == 0 or (zero.stage == 1 and zero.lays_shares)):
        return 0.0, 0.0
    if zero.stage == 0:
        return bucket, 0.0
    if zero.stage == 1 and zero.lays_shares:
        return bucket * (1 if several else 2), 0.0  # flattened, and the parameters' gradients if they are not held
    if not zero.contiguous:
        return 0.0, 0.0
    return bucket * (2 if zero.overlap else 1), bucket if zero.stage == 3 else 0.0


def _offloaded(zero: Zero, share: float, several: bool, ema: bool, frozen: float) -> tuple[float, float]:
    """Bytes in the memory of the rank's node, and on its disk.

    Args:
        share: trained parameters of the rank.
        several: a step has several micro-batches.
        frozen: the rank's other parameters.
    """
    host = disk = 0.0
    optimizer = (OFFLOADED + FP32 * ema) * share
    if zero.optimizer_on_host and "offload_optimizer" in zero.on_disk:
        disk += optimizer
    elif zero.optimizer_on_host:
        host += optimizer
    if zero.optimizer_on_host and zero.stage < 3:  # updated weights on their way back, and what micro-batches sum up
        host += share * zero.element * (2 if zero.stage == 2 and several else 1)
    if "offload_param" in zero.on_disk:
        disk += (share + frozen) * zero.element
    elif zero.weights_on_host:
        host += (share + frozen) * zero.element
    return host, disk


def elements(matrices: Shapes) -> int:
    return sum(rows * columns for group in matrices for rows, columns in group)


def iteration(group: Sequence[tuple[int, int]], ranks: int) -> float:
    """Bytes that Muon has at once, besides its momentum, while it updates a group's matrices.

    For the largest matrix its previous, present and next values and the three square ones in between; and, if matrices
    are split, the rank's own pieces and their gradients, and twice the matrices that are assembled.

    Args:
        ranks: that the matrices are split among; 0 = they are whole.
    """
    largest, own = max(rows * columns for rows, columns in group), elements([group])
    squares = max(min(shape) ** 2 for shape in group)
    beside = 2 * own / ranks + 2 * min(own, max(AT_ONCE, largest)) if ranks else largest
    return float(FP32 * (3 * largest + 3 * squares + beside))
