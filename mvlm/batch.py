"""What the loader gives the model, and what the model gives back.

Shape legend, used as name suffixes everywhere:
    B pairs in the micro-batch    G pairs in the global batch       K candidates in an ITM group
    U pairs or tokens from elsewhere that a rank's own are compared with
    J pairs in all ITM groups that a micro-batch overlaps
    N patches                     S = N + 1 tokens with CLS         L text tokens
    D width                       E contrastive width               V vocabulary
    Q = 3 * P * P values of a patch of P x P pixels                 M masked patches or masked tokens
    A classes of a fine-tuning task, such as answers
    C, H, W channels, height, width of an image                     T text tokens of all pairs, without padding
    BN, BL and BC in prose, as in "row of BN": an index into the flattened tensor of that shape
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
"""Target of a token that is not predicted (torch's default for cross-entropy)."""


@dataclass(frozen=True)
class MaskedPlaces:
    """Where the masked patches and tokens are, computed on the host: asking the device would mean waiting for it."""

    patch_BC: Tensor  # int64, each image's masked patches in order, the same number in every image
    patch_M: Tensor  # int64, the same as rows of BN
    token_BC: Tensor  # int64, each sentence's masked tokens in order, padded with token 0
    token_M: Tensor  # int64, the rows of BC (of token_BC) that are masked tokens, padded with a row that is not


@dataclass(frozen=True)
class Packing:
    """A batch of texts without padding: all their tokens, one text after another."""

    token_T: Tensor  # int64, the rows of BL that are not padding, filled up to a round length with a row beyond BL
    starts: Tensor  # int32 [B + 2], where each text begins, then where the filling begins and ends


@dataclass(frozen=True)
class Batch:
    """A micro-batch of image-text pairs at consecutive positions of the global batch.

    `masked_image_BCHW` is the view whose patches are masked; it is the same tensor object as `image_BCHW` unless the
    configuration asks for two views.
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
        """Copy to `device`, asynchronously if the memory is pinned; shared tensors stay shared."""
        return apply(self, lambda tensor: tensor.to(device, non_blocking=True))

    def __len__(self) -> int:
        return self.text_BL.shape[0]


@dataclass(frozen=True)
class LabelledBatch:
    """A micro-batch of a fine-tuning task: images, the sentences that belong to them, and labels."""

    image_VBCHW: Tensor  # uint8; V = 2 if the task is about pairs of images, left and right, else 1
    text_TBL: Tensor  # int64 token ids; T = 2 if two sentences are compared, else 1
    valid_TBL: Tensor  # bool, False = padding
    label_B: Tensor  # int64 class; or float32 [B, A], a score for each answer
    position_B: Tensor  # int64, samples seen before this one, counted from the run's start
    row_B: Tensor  # int64, row in the data

    def to(self, device: torch.device) -> LabelledBatch:
        """Copy to `device`, asynchronously if the memory is pinned."""
        return apply(self, lambda tensor: tensor.to(device, non_blocking=True))

    def __len__(self) -> int:
        return self.text_TBL.shape[1]


@dataclass(frozen=True)
class Encoded:
    """The contrastive side of a (micro-)batch: projected features, and ids that reveal duplicates."""

    image_BE: Tensor  # unit length
    text_BE: Tensor  # unit length
    image_id_B: Tensor
    caption_id_B: Tensor


@dataclass(frozen=True)
class ItcGradients:
    """ITC over the global batch, as needed by one part of it: losses and gradients, fp32 and detached."""

    loss_B: Tensor  # of each own pair
    at_image_BE: Tensor  # the gradient of the sum over the G pairs at the own features
    at_text_BE: Tensor
    at_temperature: Tensor  # scalar, likewise
    at_bias: Tensor | None  # scalar, likewise; None = softmax, which has no bias
    pairs: int  # G

    def split(self, parts: int) -> list[ItcGradients]:
        """One for each of `parts` consecutive, equally large groups of the own pairs."""
        size = len(self.loss_B) // parts
        rows = zip(self.loss_B.split(size), self.at_image_BE.split(size), self.at_text_BE.split(size), strict=True)
        return [
            replace(self, loss_B=loss_B, at_image_BE=at_image_BE, at_text_BE=at_text_BE)
            for loss_B, at_image_BE, at_text_BE in rows
        ]


@dataclass(frozen=True)
class Negative:
    """For each pair, the sequence of another: a row of the micro-batch, or tokens if it may lie outside."""

    row_B: Tensor | None = None  # int64
    tokens_BLD: Tensor | None = None
    valid_BL: Tensor | None = None  # bool, of `tokens_BLD`; None = no padding


Negatives: TypeAlias = "Callable[[Encoded, Tensor, Tensor, Tensor], tuple[Negative, Negative]]"
"""(A micro-batch's features, the temperature, image_BSD, text_BLD) -> negative images, negative texts."""


@dataclass(frozen=True)
class Counts:
    """What the losses of one micro-batch are divided by.

    Every loss divided by them is scaled so that its plain mean over the `parts` micro-batches (ranks x accumulation,
    which is what data parallelism averages) is the global batch's loss; the same holds for its gradient.
    """

    parts: int  # micro-batches in the global batch
    counted_B3: Tensor  # bool, which ITM examples of the own pairs count
    masked_tokens: Tensor  # scalar, in the whole global batch
    masked_patches: Tensor  # scalar, in the whole global batch
    itm_examples: Tensor  # scalar, those that count in the whole global batch: each pair and its negatives


@dataclass(frozen=True)
class GlobalBatch:
    """What one micro-batch needs to know of the global batch."""

    # (own features, temperature, bias): sends the features, and returns a function that waits for everyone's.
    contrast: Callable[[Encoded, Tensor, Tensor | None], Callable[[], ItcGradients]]
    negatives: Negatives  # draws them, and fetches them if a group is larger than the micro-batch
    counts: Counts


def apply(batch: B, change: Callable[[Tensor], Tensor]) -> B:
    """The batch, a (nested) dataclass of tensors, with every tensor changed; shared tensors stay shared."""
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
    """A step's metrics besides its losses, from what the forward pass computes anyway.

    Everything stays on the device, to avoid synchronising with it.

    Attributes:
        correct, total: by accuracy, how many of this rank's predictions are correct, and out of how many; scalars.
        values: by metric, a scalar that is the same on every rank.
    """

    correct: dict[str, Tensor] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def count(self, name: str, correct: Tensor, counted: Tensor | None = None) -> None:
        """Add predictions, each 1 or True if correct, 0 or False if wrong.

        Args:
            counted: bool, which of them count; None = all.
        """
        correct = correct.detach().float()
        counted = correct.new_ones(()).expand_as(correct) if counted is None else counted.float()
        self._count(name, (correct * counted).sum(), counted.sum())

    def add(self, other: MetricAccumulator) -> None:
        """Add another accumulator's counts, and take its values."""
        for name, correct in other.correct.items():
            self._count(name, correct, other.total[name])
        self.values |= other.values

    def _count(self, name: str, correct: Tensor, total: Tensor) -> None:
        self.correct[name] = self.correct.get(name, 0) + correct
        self.total[name] = self.total.get(name, 0) + total


Losses: TypeAlias = "dict[str, Tensor]"
"""Scalars named "image", "text", "itc" and "itm", without those of weight 0, and those of further objectives; or "task"
in fine-tuning."""
