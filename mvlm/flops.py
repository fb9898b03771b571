"""Floating point operations of a pretraining step, in closed form: matrix products alone, two for each multiply-add.

Elementwise work, norms and softmax are left out, as is customary; so is what an implementation of attention computes
a second time in its backward pass. Legend as in mvlm/batch.py: N patches, S = N + 1, L text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.batch import IGNORE, Batch
from mvlm.config import Objectives
from mvlm.model.dimensions import Dimensions, Tower

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
        restored_places: queries of the words' last block: the hidden tokens of the sentence that hides most.
        pool: pairs that the contrastive loss compares with.
    """

    length: float
    tokens: float
    squared_tokens: float
    hidden_tokens: float
    hidden_patches: float
    restored_places: float
    pool: float

    @classmethod
    def of(cls, batch: Batch, pool: int | None = None) -> Work:
        """Read from a batch; `pool` is the global batch, by default the batch itself."""
        tokens_B = batch.valid_BL.sum(1).double()
        hidden_tokens_B = (batch.target_BL != IGNORE).sum(1)
        return cls(
            length=batch.text_BL.shape[1],
            tokens=float(tokens_B.mean()),
            squared_tokens=float(tokens_B.square().mean()),
            hidden_tokens=int(hidden_tokens_B.sum()) / len(batch),
            hidden_patches=int(batch.patch_mask_BN.sum()) / len(batch),
            restored_places=int(hidden_tokens_B.max()),
            pool=pool or len(batch),
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
    restores = bool(objectives.image or objectives.text)
    views = 2 if restores or objectives.alignment_inputs == "masked" else 1  # the whole and the hidden input
    patch_embedding = _patch_embedding(sizes)
    flops = {
        "vision": views * (patch_embedding + _vision(sizes)),
        "text": views * _text(sizes.text, work, savings.packed),
    }
    readings = 3 if objectives.itm else 0
    if objectives.image or readings:
        flops["cross_image"] = _cross_image(sizes, work, bool(objectives.image), readings, savings.pruned)
    if objectives.text or readings:
        flops["cross_text"] = _cross_text(sizes, work, bool(objectives.text), readings, savings.pruned)
    if objectives.image:
        flops["image_decoder"] = _image_decoder(sizes, work, savings.pruned)
    flops["heads"] = _heads(sizes, work, objectives, savings.masked_heads)
    return flops


def step_flops(sizes: Dimensions, work: Work, objectives: Objectives, savings: Savings = FULL) -> Flops:
    """Operations of a pair's forward and backward pass.

    The gradients of a product's two factors cost as much again as the product, each; the patch embedding's image
    needs none.
    """
    forward = forward_flops(sizes, work, objectives, savings)
    views = forward["vision"] / (_patch_embedding(sizes) + _vision(sizes))
    step = {name: 3 * value for name, value in forward.items()}
    step["vision"] -= views * _patch_embedding(sizes)
    return step


def _patch_embedding(sizes: Dimensions) -> float:
    return 2.0 * sizes.patches * sizes.patch_values * sizes.vision.width


def _vision(sizes: Dimensions) -> float:
    tokens = sizes.patches + sizes.vision.tokens_extra
    return _tower(sizes.vision, tokens, tokens**2)


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


def _cross_image(sizes: Dimensions, work: Work, restores: bool, readings: int, pruned: bool) -> float:
    """Image tokens read the text: `readings` times for matching, and once to restore the patches."""
    block, tokens, depth = _image_block(sizes), sizes.patches + 1.0, sizes.cross_depth
    if not pruned:
        return depth * (restores + readings) * block.whole(tokens, work.length)
    shared = depth * block.keys_and_values(work.length)
    return (
        shared
        + restores * depth * block.of_queries(tokens, tokens, work.length)
        + _matching(block, tokens, work.length, depth, readings)
    )


def _cross_text(sizes: Dimensions, work: Work, restores: bool, readings: int, pruned: bool) -> float:
    """Words read the image: `readings` times for matching, and once to restore the hidden ones."""
    block, depth = _Block(sizes.text.width, sizes.vision.width, sizes.cross_ratio), sizes.cross_depth
    tokens, context = work.length, sizes.patches + 1.0
    if not pruned:
        return depth * (restores + readings) * block.whole(tokens, context)
    restoring = (depth - 1) * block.of_queries(tokens, tokens, context)
    restoring += block.of_queries(work.restored_places, tokens, context)
    shared = depth * block.keys_and_values(context)
    return shared + restores * restoring + _matching(block, tokens, context, depth, readings)


def _matching(block: _Block, tokens: float, context: float, depth: int, readings: int) -> float:
    """All readings of a pair: their first self-attention is the same, and of the last block only CLS is read."""
    if not readings:
        return 0.0
    if depth == 1:
        after = block.cross_attention(1, context) + block.feed_forward(1)
        return block.self_attention(1, tokens) + readings * after
    first = block.cross_attention(tokens, context) + block.feed_forward(tokens)
    middle = (depth - 2) * block.of_queries(tokens, tokens, context)
    last = block.of_queries(1, tokens, context)
    return block.self_attention(tokens, tokens) + readings * (first + middle + last)


def _image_decoder(sizes: Dimensions, work: Work, pruned: bool) -> float:
    block, tokens, depth = _image_block(sizes), sizes.patches + 1.0, sizes.decoder_depth
    if not pruned:
        return depth * block.whole(tokens, work.length)
    last = block.keys_and_values(work.length) + block.of_queries(work.hidden_patches, tokens, work.length)
    return (depth - 1) * block.whole(tokens, work.length) + last


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
