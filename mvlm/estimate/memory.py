"""The memory of a training step by kind, at the moment that needs the most."""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.estimate.communication import feature_bytes
from mvlm.estimate.count import FakeModel, Moments
from mvlm.kernels.contrastive import AT_ONCE, PAYS
from mvlm.training.contrast import ranks_at_once
from mvlm.training.zero.memory import FP32, States

CONTRASTIVE_BYTES = 25
"""Per similarity that is held at once: the gradient's matrices in fp32 (mvlm/kernels/contrastive.py)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's device at the moment of a step that needs the most, by kind.

    Attributes:
        weights, gradients, optimizer: of the model, as ZeRO leaves them to a rank.
        activations: kept for backward.
        contrastive: features of others, similarities with them and gradients at the own ones: alive for a moment
            between the encoders and the cross encoders, and counted at every moment but the update's.
        negatives: ITM's tokens on their way between ranks and micro-batches; counted likewise.
        scratch: what is there for a moment: gradients of activations, recomputed blocks, and the buckets of reduction.
        moment: which one it is: "forward", "backward" or "update".
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    contrastive: float
    negatives: float
    scratch: float
    moment: str

    @property
    def total(self) -> float:
        held = self.weights + self.gradients + self.optimizer + self.activations
        return held + self.contrastive + self.negatives + self.scratch


def contrastive_bytes(model: FakeModel, share: int, ranks: int) -> float:
    """What ITC takes between a rank's `share` of the global batch and the block of others that it holds at once.

    All ranks' features may be one block; of several, it holds the next one too.
    """
    if not model.objectives.itc:
        return 0.0
    at_once = ranks_at_once(share * ranks, ranks, model.objectives.itc_exchange)
    block, blocks = share * at_once, 1 if at_once == ranks else 2
    similarities = 0 if block >= PAYS else min(share * block, max(AT_ONCE, block))
    gradients = 2 * share * model.contrastive_width * FP32
    return float(CONTRASTIVE_BYTES * similarities + gradients + blocks * block * feature_bytes(model.contrastive_width))


def peak(moments: Moments, states: States, similarities: float, pairs: int, negatives: float = 0.0) -> Memory:
    """The peak of a step with micro-batches of `pairs`.

    Args:
        similarities: as `contrastive_bytes` gives them.
        negatives: bytes of what travels for ITM.
    """
    live = moments.fixed + moments.per_pair * pairs
    gradients = states.held + (states.gradients - states.held) * moments.gradients
    gradients[moments.backward :] += states.share
    needed = live + gradients
    needed[moments.backward :] += states.buckets
    at = int(needed.argmax())
    is_backward = at >= moments.backward
    # What is alive at every moment between here and the turn from forward to backward is kept for backward.
    between = live[moments.backward : at + 1] if is_backward else live[at : moments.backward]
    kept = float(between.min())
    scratch = float(live[at]) - kept + (states.buckets if is_backward else 0.0)
    name = "backward" if is_backward else "forward"
    between_ranks = similarities, negatives
    passing = Memory(states.weights, float(gradients[at]), states.optimizer, kept, *between_ranks, scratch, name)
    weights = states.weights - states.gathered
    update = Memory(weights, states.averaged, states.optimizer, 0.0, 0.0, 0.0, states.update, "update")
    return max(passing, update, key=lambda memory: memory.total)
