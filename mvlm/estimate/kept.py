"""What attention and a stretch of a step keep, in elements and bytes; shared by the parts of mvlm/estimate."""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
NORM_BYTES = 2 * FP32
"""Mean and deviation of a row, which a layer norm keeps."""


@dataclass(frozen=True)
class Arithmetic:
    """How a step computes, as far as what it keeps depends on it.

    Attributes:
        element: bytes of an activation, 2 or 4.
        fused_attention: `scaled_dot_product_attention`, and no matrix of attention weights.
        packed_attention: the text encoder's attention sees no padding either.
        fused_losses: the masked-patch loss reads the image in place.
    """

    element: int
    fused_attention: bool = True
    packed_attention: bool = True
    fused_losses: bool = True

    @classmethod
    def on_gpu(cls, element: int) -> Arithmetic:
        """What mvlm/kernels takes on a CUDA device."""
        return cls(element, packed_attention=element == 2)

    @classmethod
    def on_cpu(cls, element: int, gains_by_bf16: bool) -> Arithmetic:
        """What it takes on a CPU; one that is faster in bf16 has two products with a softmax between them for it."""
        fused = element == FP32 or not gains_by_bf16
        return cls(element, fused_attention=fused, packed_attention=False, fused_losses=False)


@dataclass(frozen=True)
class Piece:
    """A stretch of the forward pass, in bytes for one pair.

    Attributes:
        part: as in `Shape.parameters`.
        kept: from its forward to its backward pass.
        again: for as long as its backward pass computes it again.
        scratch: of its backward pass beside what is kept.
        block: one of the transformer blocks that `train.recompute` takes its share of.
    """

    part: str
    kept: float
    again: float = 0.0
    scratch: float = 0.0
    block: bool = False


def attention(heads: int, looks: list[tuple[float, float, int]], how: Arithmetic) -> tuple[float, float]:
    """Of (queries, keys, sequences): elements of attention weights that are kept, and bytes of their log-sum-exps."""
    if how.fused_attention:
        return 0.0, float(sum(queries * heads * FP32 for queries, _, _ in looks))
    return float(sum(heads * queries * keys / count for queries, keys, count in looks)), 0.0
