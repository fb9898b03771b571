"""The memory of a training step by kind, and its peak: the moments of a step one after another."""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.config.schema import Config
from mvlm.estimate.activations import pieces
from mvlm.estimate.encoders import Shape
from mvlm.estimate.flops import Work
from mvlm.estimate.kept import Arithmetic, Piece
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
        scratch: what backward needs for a moment, blocks computed again, and the buckets of reduction.
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


def contrastive_bytes(config: Config, pairs: int, how: Arithmetic) -> float:
    """Of the similarities of a micro-batch of `pairs` with the global batch, in the backward pass."""
    whole = config.train.global_batch
    streamed = how.fused_losses and whole >= STREAMED_FROM
    return 0.0 if streamed or not config.objectives.itc else float(CONTRASTIVE_BYTES * pairs * whole)


def peak(config: Config, shape: Shape, work: Work, how: Arithmetic, states: States, pairs: int) -> Memory:
    """Of a step with micro-batches of `pairs`.

    Backward runs through the pieces in reverse: what a piece keeps goes, and the gradients of its weights come.
    """
    found = pieces(config, shape, work, how)
    similarities = contrastive_bytes(config, pairs, how)
    growth = _gradient_growth(found, shape, states.gradients - states.held)

    def at(moment: str, gradients: float, activations: float, scratch: float) -> Memory:
        alive = 0.0 if moment == "update" else similarities
        return Memory(states.weights, gradients, states.optimizer, activations, alive, scratch, moment)

    moments = [at("update", states.gradients, 0.0, states.update + states.buckets)]
    kept, grown = 0.0, states.held
    for piece in found:
        kept += piece.kept * pairs
        moments.append(at("forward", states.held, kept, piece.again * pairs))
    for piece, growing in zip(reversed(found), reversed(growth), strict=True):
        grown += growing
        moments.append(at("backward", grown, kept, (piece.again + piece.scratch) * pairs + states.buckets))
        kept -= piece.kept * pairs
    return max(moments, key=lambda moment: moment.total)


def _gradient_growth(found: list[Piece], shape: Shape, coming: float) -> list[float]:
    """Bytes of gradient that each piece's backward pass leaves: a part's weights lie evenly in its pieces."""
    counts = {part: sum(piece.part == part for piece in found) for part in shape.parameters}
    return [coming * shape.parameters[piece.part] / shape.total / counts[piece.part] for piece in found]
