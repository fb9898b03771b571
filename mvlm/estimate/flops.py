"""Floating point operations of a pretraining step, in closed form: matrix products alone, two for each multiply-add.

Elementwise work, norms and softmax are left out, as is customary; so is what an implementation of attention computes
a second time in its backward pass. Legend as in mvlm/batch.py: N patches, S = N + 1, L text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.batch import Batch
from mvlm.config.schema import Objectives
from mvlm.model.dimensions import Dimensions, Tower
from mvlm.model.inputs import views_read

Flops = dict[str, float]
"""Operations a pair by component: "vision", "text", "cross_image", "cross_text", "image_decoder", "heads"."""


@dataclass(frozen=True)
class Work:
    """What a pair of a batch holds, in the mean over its pairs.

    Attributes:
        length: L, to which the batch's text is padded.
        tokens: not padding.
        squared_tokens: the mean of the square of a sentence's tokens, which self-attention goes with.
        hidden_tokens, hidden_patches: to be restored.
        restored_places: queries of the words' last block: the hidden tokens, filled up to those of
            the sentence that hides most.
        pool: pairs that the contrastive loss compares with.
        shared_view: the hidden and the whole image are one and the same.
    """

    length: float
    tokens: float
    squared_tokens: float
    hidden_tokens: float
    hidden_patches: float
    restored_places: float
    pool: float
    shared_view: bool = True

    @classmethod
    def of(cls, batch: Batch, pool: int | None = None) -> Work:
        """Read from a batch; `pool` is the global batch, by default the batch itself."""
        tokens_B = batch.valid_BL.sum(1).double()
        return cls(
            length=batch.text_BL.shape[1],
            tokens=float(tokens_B.mean()),
            squared_tokens=float(tokens_B.square().mean()),
            hidden_tokens=len(batch.masked.token_M) / len(batch),
            hidden_patches=batch.masked.patch_BC.shape[1],
            restored_places=batch.masked.token_BC.shape[1],
            pool=pool or len(batch),
            shared_view=batch.masked_image_BCHW is batch.image_BCHW,
        )


@dataclass(frozen=True)
class Savings:
    """Which work a step leaves out; none of it changes a loss or a gradient.

    Attributes:
        packed: the text encoder computes no padding.
        masked_heads: words and pixels are predicted only where they are hidden.
        pruned: nothing in the cross encoders and the decoder is computed twice, and nothing in their last blocks that
            no loss reads.
    """

    packed: bool = True
    masked_heads: bool = True
    pruned: bool = True


NAIVE = Savings(packed=False, masked_heads=False, pruned=False)
FULL = Savings()


def forward_flops(sizes: Dimensions, work: Work, objectives: Objectives, savings: Savings = FULL) -> Flops:
    """Operations of a pair's forward pass; a component that the objectives do not need is absent."""
    flops = {
        "vision": _patch_embedding(sizes, work, objectives, savings) + _vision(sizes, work, objectives),
        "text": sum(views_read(objectives, "text")) * _text(sizes.text, work, savings.packed),
    }
    aligned_hidden, context_hidden = objectives.alignment_inputs == "masked", objectives.hide == "both"
    one_context = aligned_hidden == context_hidden
    whole, hidden = image_tokens(sizes, work, objectives)
    aligned, context = hidden if aligned_hidden else whole, hidden if context_hidden else whole
    if objectives.image or objectives.itm:
        restoring = _Reading(hidden, work.length, hidden) if objectives.image else None
        matching = _Reading(aligned, work.length, 1) if objectives.itm else None
        block = _image_block(sizes)
        flops["cross_image"] = _cross(block, sizes.cross_depth, restoring, matching, one_context, savings.pruned)
    if objectives.text or objectives.itm:
        restoring = _Reading(work.length, context, work.restored_places) if objectives.text else None
        matching = _Reading(work.length, aligned, 1) if objectives.itm else None
        block = _Block(sizes.text.width, sizes.vision.width, sizes.cross_ratio)
        flops["cross_text"] = _cross(block, sizes.cross_depth, restoring, matching, one_context, savings.pruned)
    if objectives.image:
        restoring = _Reading(sizes.patches + 1.0, work.length, work.hidden_patches)
        flops["image_decoder"] = _cross(
            _image_block(sizes), sizes.decoder_depth, restoring, None, one_context, savings.pruned
        )
    flops["heads"] = _heads(sizes, work, objectives, savings.masked_heads)
    return flops


def step_flops(sizes: Dimensions, work: Work, objectives: Objectives, savings: Savings = FULL) -> Flops:
    """Operations of a pair's forward and backward pass.

    The gradients of a product's two factors cost as much again as the product, each; the patch embedding's image
    needs none.
    """
    step = {name: 3 * value for name, value in forward_flops(sizes, work, objectives, savings).items()}
    step["vision"] -= _patch_embedding(sizes, work, objectives, savings)
    return step


def image_tokens(sizes: Dimensions, work: Work, objectives: Objectives) -> tuple[float, float]:
    """Tokens with CLS of the whole and of the hidden image."""
    whole = sizes.patches + 1.0
    return whole, whole - work.hidden_patches if objectives.image_masking == "drop" else whole


def _patch_embedding(sizes: Dimensions, work: Work, objectives: Objectives, savings: Savings) -> float:
    views = sum(views_read(objectives, "image"))
    if savings.pruned and work.shared_view and objectives.image_masking != "drop":
        views = 1
    return views * 2.0 * sizes.patches * sizes.patch_values * sizes.vision.width


def _vision(sizes: Dimensions, work: Work, objectives: Objectives) -> float:
    extra = sizes.vision.tokens_extra - 1
    lengths = zip(image_tokens(sizes, work, objectives), views_read(objectives, "image"), strict=True)
    return sum(_tower(sizes.vision, tokens + extra, (tokens + extra) ** 2) for tokens, is_read in lengths if is_read)


def _text(tower: Tower, work: Work, packed: bool) -> float:
    return _tower(tower, work.tokens, work.squared_tokens) if packed else _tower(tower, work.length, work.length**2)


def _tower(tower: Tower, tokens: float, squared_tokens: float) -> float:
    return 2.0 * tower.matrices * tokens + 4.0 * tower.depth * tower.width * squared_tokens


@dataclass(frozen=True)
class _Block:
    """A cross block's parts: queries of `width` that read a context of `context_width`."""

    width: int
    context_width: int
    ratio: int

    def self_attention(self, queries: float, tokens: float) -> float:
        """Of `queries` to all `tokens`, which are projected to keys and values."""
        return 4.0 * self.width**2 * (queries + tokens) + self._attend(queries, tokens)

    def cross_attention(self, queries: float, context: float) -> float:
        """To a context whose keys and values are given."""
        return 4.0 * self.width**2 * queries + self._attend(queries, context)

    def keys_and_values(self, context: float) -> float:
        return 4.0 * self.context_width * self.width * context

    def feed_forward(self, queries: float) -> float:
        return 4.0 * self.ratio * self.width**2 * queries

    def whole(self, tokens: float, context: float) -> float:
        """Every token a query, the context projected for this reading alone."""
        return self.keys_and_values(context) + self.of_queries(tokens, tokens, context)

    def of_queries(self, queries: float, tokens: float, context: float) -> float:
        """Only some tokens are queries, and the context's keys and values are given."""
        after = self.cross_attention(queries, context) + self.feed_forward(queries)
        return self.self_attention(queries, tokens) + after

    def _attend(self, queries: float, context: float) -> float:
        return 4.0 * self.width * queries * context


def _image_block(sizes: Dimensions) -> _Block:
    return _Block(sizes.vision.width, sizes.text.width, sizes.cross_ratio)


@dataclass(frozen=True)
class _Reading:
    """A sequence of `tokens` that reads `context` others; `kept` of them are read from the last block."""

    tokens: float
    context: float
    kept: float


def _cross(
    block: _Block,
    depth: int,
    restoring: _Reading | None,
    matching: _Reading | None,
    one_context: bool,
    pruned: bool,
) -> float:
    """A stack of blocks in which a pair is read once to restore what is hidden, and three times to be matched.

    Args:
        one_context: what is hidden is restored from the very context that is matched.
    """
    readings = [reading for reading in (restoring, matching) if reading]
    if not pruned:
        times = {restoring: 1, matching: 3}
        return depth * sum(times[reading] * block.whole(reading.tokens, reading.context) for reading in readings)
    contexts = readings[:1] if one_context else readings
    flops = depth * sum(block.keys_and_values(reading.context) for reading in contexts)
    if restoring:
        tokens, context = restoring.tokens, restoring.context
        flops += (depth - 1) * block.of_queries(tokens, tokens, context)
        flops += block.of_queries(restoring.kept, tokens, context)
    return flops + (_matching(block, depth, matching) if matching else 0.0)


def _matching(block: _Block, depth: int, matching: _Reading) -> float:
    """The three readings: their first self-attention is the same one, and of the last block only CLS is read."""
    tokens, context = matching.tokens, matching.context
    if depth == 1:
        once = block.self_attention(matching.kept, tokens)
        return once + 3 * (block.cross_attention(matching.kept, context) + block.feed_forward(matching.kept))
    first = block.cross_attention(tokens, context) + block.feed_forward(tokens)
    middle = (depth - 2) * block.of_queries(tokens, tokens, context)
    last = block.of_queries(matching.kept, tokens, context)
    return block.self_attention(tokens, tokens) + 3 * (first + middle + last)


def _heads(sizes: Dimensions, work: Work, objectives: Objectives, masked: bool) -> float:
    words = work.hidden_tokens if masked else work.length
    patches = work.hidden_patches if masked else sizes.patches
    vision, text = sizes.vision.width, sizes.text.width
    flops = 0.0
    if objectives.text:
        flops += 2.0 * words * text * sizes.vocabulary
    if objectives.image:
        flops += 2.0 * patches * vision * sizes.patch_values
    if objectives.itc or objectives.itm:
        flops += 2.0 * (vision + text) * sizes.contrastive_width
    if objectives.itc:
        flops += 2.0 * work.pool * sizes.contrastive_width
    if objectives.itm:
        align = text * vision if text != vision else 0
        flops += 3 * 2.0 * (2 * vision + align)
    return flops
