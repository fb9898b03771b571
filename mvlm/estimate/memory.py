"""The memory of a training step by kind, at the moment that needs the most."""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.config.schema import Objectives
from mvlm.estimate.count import Moments
from mvlm.training.zero.memory import States

CONTRASTIVE_BYTES = 25
"""Of each similarity of a micro-batch with the global batch, at most at once: the gradient's matrices in fp32
(mvlm/kernels/contrastive.py)."""
STREAMED_FROM = 65_536
"""Global batch from which a GPU keeps no similarities."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's device at the moment of a step that needs the most, by kind.

    Attributes:
        weights, gradients, optimizer: of the model, as ZeRO leaves them to a rank.
        activations: kept for backward.
        contrastive: similarities of the micro-batch with the global batch: alive for a moment between the backward
            passes of the cross encoders and the encoders, and counted at every moment but the update's.
        scratch: what is there for a moment: gradients of activations, blocks computed again, and the buckets of
            reduction.
        moment: which it is: "forward", "backward" or "update".
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    contrastive: float
    scratch: float
    moment: str

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.contrastive + self.scratch


def contrastive_bytes(objectives: Objectives, whole: int, pairs: int) -> float:
    """Of the similarities of a micro-batch of `pairs` with a global batch of `whole`, in the backward pass."""
    return 0.0 if whole >= STREAMED_FROM or not objectives.itc else float(CONTRASTIVE_BYTES * pairs * whole)


def peak(moments: Moments, states: States, similarities: float, pairs: int) -> Memory:
    """Of a step with micro-batches of `pairs`.

    Args:
        similarities: as `contrastive_bytes` gives them.
    """
    live = moments.fixed + moments.per_pair * pairs
    gradients = states.held + (states.gradients - states.held) * moments.gradients
    needed = live + gradients
    needed[moments.backward :] += states.buckets
    at = int(needed.argmax())
    is_backward = at >= moments.backward
    # What no moment between here and the turn from forward to backward lacks is kept for backward.
    between = live[moments.backward : at + 1] if is_backward else live[at : moments.backward]
    kept = float(between.min())
    scratch = float(live[at]) - kept + (states.buckets if is_backward else 0.0)
    name = "backward" if is_backward else "forward"
    passing = Memory(states.weights, float(gradients[at]), states.optimizer, kept, similarities, scratch, name)
    scratch = states.update + states.buckets
    update = Memory(states.weights, states.gradients, states.optimizer, 0.0, 0.0, scratch, "update")
    return max(passing, update, key=lambda memory: memory.total)
