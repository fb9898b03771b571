"""What a rank keeps of the model itself under each ZeRO stage (Rajbhandari et al. 2020), as DeepSpeed 0.19 keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvlm.training.zero.muon import AT_ONCE

FP32 = 4
GATHERED = REUSED = 1_000_000_000
"""Elements where the JSON does not say: its stage3_max_live_parameters and stage3_max_reuse_distance."""


@dataclass(frozen=True)
class Zero:
    """A resolved DeepSpeed configuration, as far as memory and communication follow from it.

    Attributes:
        element: bytes of a weight, an activation and a gradient: 2 or 4.
        all_reduces: stages 1 and 2 all-reduce a bucket, of which each rank keeps its share; else each share is reduced
            to its rank.
        reduce_bucket, prefetch_bucket, gathered: elements.
        reuse: elements used in between that stage 3 keeps gathered weights for until they are used again.
        secondary: ranks that hold all weights once more among them (hpZ); 1 = none.
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

    @classmethod
    def of(cls, resolved: dict[str, Any]) -> Zero:
        """From what `ds_config.resolve` gives."""
        zero = resolved["zero_optimization"]
        low = any((resolved.get(name) or {}).get("enabled") for name in ("bf16", "fp16"))
        stage = zero["stage"]

        def on_host(name: str) -> bool:
            return (zero.get(name) or {}).get("device", "none") != "none"

        return cls(
            stage=stage,
            element=2 if low else FP32,
            overlap=stage == 0 or zero.get("overlap_comm", stage == 3),
            all_reduces=zero.get("use_multi_rank_bucket_allreduce", True),
            reduce_bucket=int(zero["reduce_bucket_size"]),
            prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", zero["reduce_bucket_size"])),
            gathered=int(zero.get("stage3_max_live_parameters", GATHERED)),
            reuse=int(zero.get("stage3_max_reuse_distance", REUSED)),
            secondary=int(zero.get("zero_hpz_partition_size", 1)),
            contiguous=zero.get("contiguous_gradients", True),
            optimizer_on_host=on_host("offload_optimizer"),
            weights_on_host=on_host("offload_param"),
        )


@dataclass(frozen=True)
class States:
    """Bytes on a rank's device.

    Attributes:
        weights: that the step computes with, those that stage 3 gathers included.
        gathered: of `weights`, those, which are let go before the optimiser's step.
        gradients: at the end of a backward pass.
        held: of `gradients`, from one micro-batch of a step to the next, or all the time.
        averaged: of `gradients`, once they are reduced and the optimiser's step begins.
        optimizer: fp32 weights and both of AdamW's moments, of which Muon's matrices have one.
        buckets: that gradients are reduced in.
        update: of the optimiser's step alone: the fp32 gradient of what it updates at once, for Muon with what its
            iteration has.
    """

    weights: float
    gathered: float
    gradients: float
    held: float
    averaged: float
    optimizer: float
    buckets: float
    update: float


Shapes = Sequence[Sequence[tuple[int, int]]]
"""Of the matrices that Muon updates, by parameter group."""


def states(parameters: int, zero: Zero, ranks: int, accumulation: int, matrices: Shapes = ()) -> States:
    """Of a model of so many parameters on each of `ranks`.

    Args:
        accumulation: micro-batches a step.
    """
    whole, share = parameters * zero.element, parameters / ranks
    weights, gathered = float(whole), 0.0
    if zero.stage == 3:
        kept = 0.0 if zero.weights_on_host else share * zero.element
        kept += 0.0 if zero.secondary == 1 else whole / zero.secondary
        if ranks > 1 or zero.weights_on_host:
            gathered = float(min(parameters, zero.gathered) * zero.element)
        weights = kept + gathered
    gradients = float(whole) if zero.stage < 2 else share * zero.element
    held = gradients if accumulation > 1 or zero.stage == 3 else 0.0
    averaged = share * zero.element if zero.stage else gradients
    copies = 2 if zero.stage == 0 and zero.element == FP32 else 3
    mine = parameters if zero.stage == 0 else share
    owned = elements(matrices) / (ranks if zero.stage else 1)
    optimizer = copies * FP32 * mine - FP32 * owned
    update = FP32 * (mine - owned) if zero.element != FP32 or zero.stage else 0.0
    update = max(update, *(iteration(group, ranks if zero.stage else 0) for group in matrices), 0.0)
    buckets, bucket = 0.0, float(min(zero.reduce_bucket, parameters) * zero.element)
    if zero.stage and zero.contiguous:
        buckets = bucket * (2 if zero.overlap else 1)
    elif zero.stage == 0 and ranks > 1:
        buckets = bucket
    if zero.optimizer_on_host:
        optimizer, update = 0.0, 0.0
        gradients = held = averaged = 0.0 if zero.stage < 3 else gradients
    return States(weights, gathered, gradients, held, averaged, optimizer, buckets, update)


def elements(matrices: Shapes) -> int:
    return sum(rows * columns for group in matrices for rows, columns in group)


def iteration(group: Sequence[tuple[int, int]], ranks: int) -> float:
    """Bytes that Muon has at once, beside its momentum, while it updates a group's matrices.

    Of the largest matrix what it was, is and will be and the three square ones between; and, where matrices are split,
    the own pieces and their gradients, and those that are put together, twice.

    Args:
        ranks: that the matrices are split among; 0 = they are whole.
    """
    largest, own = max(rows * columns for rows, columns in group), elements([group])
    squares = max(min(shape) ** 2 for shape in group)
    beside = 2 * own / ranks + 2 * min(own, max(AT_ONCE, largest)) if ranks else largest
    return float(FP32 * (3 * largest + 3 * squares + beside))
