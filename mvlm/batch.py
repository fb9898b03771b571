"""What the loader hands to the model and the model hands back.

Shape legend, used as name suffixes everywhere:
    B pairs in the micro-batch    G pairs in the global batch       K candidates in an ITM group
    U pairs or tokens of others that own ones are compared with
    J pairs of the whole ITM groups that a micro-batch has a part in
    N patches                     S = N + 1 tokens with CLS         L text tokens
    D width                       E contrastive width               V vocabulary
    Q = 3 * P * P values of a patch of P pixels a side              M masked patches or masked tokens
    A classes of a task that is fine-tuned, such as answers
    C, H, W channels, height, width of an image                     T text tokens of all pairs, without padding
    BN, BL and BC written in words, as in "row of BN": a place in the flattened tensor of that shape
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:  # loader processes read this file and must not pay for torch
    import torch
    from torch import Tensor

B = TypeVar("B")

IGNORE = -100
"""Target of a token that is not predicted (the convention of torch's cross-entropy)."""


@dataclass(frozen=True)
class MaskedPlaces:
    """Where the masked patches and tokens are, found on the host: a device would have to be waited for."""

    patch_BC: Tensor  # int64, each image's masked patches in their order, equally many in all images
    patch_M: Tensor  # int64, the same as rows of BN
    token_BC: Tensor  # int64, each sentence's masked tokens in their order, filled up with token 0
    token_M: Tensor  # int64, the rows of BC (of token_BC) that are masked tokens, and filling where they are filled up


@dataclass(frozen=True)
class Packing:
    """A batch of texts without its padding: the tokens of all, one text after the other."""

    token_T: Tensor  # int64, the rows of BL that are no padding; rows beyond BL fill up to a round length
    starts: Tensor  # int32, where each text begins, and last where the filling begins and ends: B + 2 of them


@dataclass(frozen=True)
class Batch:
    """A micro-batch of image-text pairs at consecutive positions of the global batch.

    `masked_image_BCHW` is the view whose patches are masked; it is the very same tensor as
    `image_BCHW` unless the configuration asks for two views.
    """

    image_BCHW: Tensor  # uint8
    masked_image_BCHW: Tensor  # uint8
    patch_mask_BN: Tensor  # bool, True = masked
    text_BL: Tensor  # int64 token ids, special tokens included
    valid_BL: Tensor  # bool, False = padding
    masked_text_BL: Tensor  # int64, text with tokens masked
    target_BL: Tensor  # int64, the masked token's id or IGNORE
    position_B: Tensor  # int64, samples seen before this pair, counted from the run's start
    image_id_B: Tensor  # int64, equal ids = the same image
    caption_id_B: Tensor  # int64, equal ids = the same token sequence
    masked: MaskedPlaces
    packing: Packing

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously where the memory is pinned; shared tensors stay shared."""
        return apply(self, lambda tensor: tensor.to(device, non_blocking=True))

    def __len__(self) -> int:
        return self.text_BL.shape[0]


@dataclass(frozen=True)
class LabelledBatch:
    """A micro-batch of a task to fine-tune on: images and sentences that belong together, and their labels."""

    image_VBCHW: Tensor  # uint8; V = 2 where the task is about a pair of images, left and right, else 1
    text_TBL: Tensor  # int64 token ids; T = 2 where two sentences are compared, else 1
    valid_TBL: Tensor  # bool, False = padding
    label_B: Tensor  # int64 class; or float32 [B, A], how right each answer is
    position_B: Tensor  # int64, samples seen before this one, counted from the run's start
    row_B: Tensor  # int64, of the data

    def to(self, device: torch.device) -> LabelledBatch:
        """Copy to `device`, asynchronously where the memory is pinned."""
        return apply(self, lambda tensor: tensor.to(device, non_blocking=True))

    def __len__(self) -> int:
        return self.text_TBL.shape[1]


@dataclass(frozen=True)
class Encoded:
    """The contrastive side of a (micro-)batch: projected features and what tells equal pairs apart."""

    image_BE: Tensor  # unit length
    text_BE: Tensor  # unit length
    image_id_B: Tensor
    caption_id_B: Tensor


@dataclass(frozen=True)
class ItcGradients:
    """ITC over the global batch as one of its parts needs to see it, and its gradients, all fp32 and without graph."""

    loss_B: Tensor  # of each own pair
    at_image_BE: Tensor  # the gradient, at the own features, of the sum over the G pairs
    at_text_BE: Tensor
    at_temperature: Tensor  # scalar, of that sum
    at_bias: Tensor | None  # scalar, of that sum; None = softmax, which has no bias
    pairs: int  # G

    def split(self, parts: int) -> list[ItcGradients]:
        """Of pairs that are equally many in each part, in their order."""
        size = len(self.loss_B) // parts
        rows = zip(self.loss_B.split(size), self.at_image_BE.split(size), self.at_text_BE.split(size), strict=True)
        return [
            replace(self, loss_B=loss_B, at_image_BE=at_image_BE, at_text_BE=at_text_BE)
            for loss_B, at_image_BE, at_text_BE in rows
        ]


@dataclass(frozen=True)
class Negative:
    """For each pair the sequence of another: a row of the micro-batch, or its tokens where it may be outside of it."""

    row_B: Tensor | None = None  # int64
    tokens_BLD: Tensor | None = None
    valid_BL: Tensor | None = None  # bool, of `tokens_BLD`; None = there is no padding


Negatives: TypeAlias = "Callable[[Encoded, Tensor, Tensor, Tensor], tuple[Negative, Negative]]"
"""Of a micro-batch: (its features, the temperature, image_BSD, text_BLD) -> negative images, negative texts."""


@dataclass(frozen=True)
class Counts:
    """What the losses of one micro-batch are divided by.

    Every loss computed against it is scaled so that its plain mean over the `parts` micro-batches
    (ranks x accumulation, which is what data parallelism averages) is the global batch's loss, and so
    is its gradient.
    """

    parts: int  # micro-batches in the global batch
    counted_B3: Tensor  # bool, which examples of the own pairs count for ITM
    masked_tokens: Tensor  # scalar, in the whole global batch
    masked_patches: Tensor  # scalar, in the whole global batch
    itm_examples: Tensor  # scalar, that count in the whole global batch: each pair itself, and its negatives


@dataclass(frozen=True)
class GlobalBatch:
    """The global batch as one micro-batch needs to see it."""

    # Of own features, temperature and bias: sends the features on their way, and returns what waits for everybody's.
    contrast: Callable[[Encoded, Tensor, Tensor | None], Callable[[], ItcGradients]]
    negatives: Negatives  # draws them, and brings them here where a group is larger than the micro-batch
    counts: Counts


def apply(batch: B, change: Callable[[Tensor], Tensor]) -> B:
    """The batch, a dataclass of tensors and of the like, with every tensor changed; what was one tensor stays one."""
    changed: dict[int, Tensor] = {}

    def once(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{one.name: once(getattr(value, one.name)) for one in fields(value)})
        if id(value) not in changed:
            changed[id(value)] = change(value)
        return changed[id(value)]

    return once(batch)


@dataclass
class MetricAccumulator:
    """Metrics of a step beside its losses, from what the forward pass computes anyhow.

    Everything stays on the device, so that nothing is waited for.

    Attributes:
        correct, total: by accuracy, how many of this rank's predictions are correct, and of how many, both scalars.
        values: by metric, a scalar that is the same on every rank.
    """

    correct: dict[str, Tensor] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def count(self, name: str, correct: Tensor, counted: Tensor | None = None) -> None:
        """Add predictions, each 1 or True where it is correct, 0 or False where it is wrong.

        Args:
            counted: bool, which of them count; None = all.
        """
        correct = correct.detach().float()
        counted = correct.new_ones(()).expand_as(correct) if counted is None else counted.float()
        self._count(name, (correct * counted).sum(), counted.sum())

    def add(self, other: MetricAccumulator) -> None:
        """What another has counted, and its values."""
        for name, correct in other.correct.items():
            self._count(name, correct, other.total[name])
        self.values |= other.values

    def _count(self, name: str, correct: Tensor, total: Tensor) -> None:
        self.correct[name] = self.correct.get(name, 0) + correct
        self.total[name] = self.total.get(name, 0) + total


Losses: TypeAlias = "dict[str, Tensor]"
"""Scalars named "image", "text", "itc", "itm", of which one of weight 0 is absent, and after further objectives; or
"task", fine-tuning's own."""
