"""What a micro-batch keeps for its backward pass, in closed form: every tensor that autograd holds, block by block.

Counted from the modules as they run (mvlm/model, mvlm/kernels): GELU is computed again and keeps its input alone, a
block keeps the input and the output of each norm, attention keeps queries, keys, values and its result. Legend as in
mvlm/batch.py; sizes without "bytes" in their name are elements of the run's precision, of one pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from mvlm.config.schema import Config
from mvlm.data.loading.collate import MASKED_MULTIPLE
from mvlm.data.samples.padding import PAD_MULTIPLE
from mvlm.estimate.cross import Stack, stack_pieces
from mvlm.estimate.encoders import Shape
from mvlm.estimate.flops import Work, image_tokens
from mvlm.estimate.kept import FP32, NORM_BYTES, Arithmetic, Piece, attention
from mvlm.model.dimensions import Tower
from mvlm.model.inputs import views_read
from mvlm.model.masking import block_grid, exact_count
from mvlm.training.blocks import evenly

SPECIAL = 2
"""Tokens of a caption that are never hidden: the first and the last."""


def longest(config: Config, shape: Shape) -> Work:
    """The work of a pair whose caption fills `data.text_length`; the global batch is the contrastive pool."""
    data, objectives = config.data, config.objectives
    length = min(_round_up(data.text_length, PAD_MULTIPLE), data.text_length)
    ordinary = length - SPECIAL
    tokens = min(
        max(objectives.text_mask_minimum, exact_count(objectives.text_mask_ratio, ordinary, "nearest")), ordinary
    )
    side = math.isqrt(shape.sizes.patches)
    rows, columns = block_grid((side, side), objectives.image_mask_block)
    share = exact_count(objectives.image_mask_ratio, rows * columns, objectives.image_mask_rounding)
    return Work(
        length=length,
        tokens=length,
        squared_tokens=length**2,
        hidden_tokens=tokens,
        hidden_patches=max(1, min(share, rows * columns - 1)) * objectives.image_mask_block**2,
        restored_places=min(_round_up(max(tokens, 1), MASKED_MULTIPLE), length),
        pool=config.train.global_batch,
        shared_view=data.shared_view,
    )


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def pieces(config: Config, shape: Shape, work: Work, how: Arithmetic) -> list[Piece]:
    """What a pair keeps, in the order of the forward pass, with `train.recompute`'s share of the blocks recomputed."""
    found = [*_vision(config, shape, work, how), *_text(config, shape, work, how)]
    objectives = config.objectives
    if objectives.image or objectives.itm:
        found += _cross_image(config, shape, work, how)
    if objectives.text or objectives.itm:
        found += _cross_text(config, shape, work, how)
    if objectives.text:
        found.append(_words(shape, work, how))
    if objectives.image:
        found += _decoder(config, shape, work, how)
        found.append(_pixels(shape, work, how))
    chosen = evenly([place for place, piece in enumerate(found) if piece.block], config.train.recompute)
    for place in chosen:
        piece = found[place]
        found[place] = Piece(piece.part, piece.again, piece.kept - piece.again, piece.scratch, True)
    return [piece if piece.block else Piece(piece.part, piece.kept, 0.0, piece.scratch) for piece in found]


def _vision(config: Config, shape: Shape, work: Work, how: Arithmetic) -> Iterator[Piece]:
    sizes = shape.sizes
    tower, drops = sizes.vision, config.objectives.image_masking == "drop"
    extra = tower.tokens_extra - 1
    views = zip(image_tokens(sizes, work, config.objectives), views_read(config.objectives, "image"), strict=True)
    lengths = [length + extra for length, is_read in views if is_read]
    images = len(lengths) if drops or not config.data.shared_view else 1
    yield Piece("vision", how.element * images * sizes.patches * sizes.patch_values)
    for _ in range(tower.depth):
        yield _tower_block("vision", tower, lengths, how)
    yield Piece("vision", sum(lengths) * (2 * tower.width * how.element + NORM_BYTES))


def _text(config: Config, shape: Shape, work: Work, how: Arithmetic) -> Iterator[Piece]:
    tower, lengths = shape.sizes.text, [work.length] * sum(views_read(config.objectives, "text"))
    tokens = sum(lengths)
    yield Piece("text", tokens * (tower.width * how.element + NORM_BYTES))
    for _ in range(tower.depth):
        yield _tower_block("text", tower, lengths, how, unpacked=not how.packed_attention)
    yield Piece("text", tokens * 2 * tower.width * how.element)  # what leaves the last block, and laid out with padding


def _tower_block(part: str, tower: Tower, lengths: list[float], how: Arithmetic, unpacked: bool = False) -> Piece:
    """A plain block: attention of every sequence to itself, then the feed-forward.

    Args:
        unpacked: attention reads and gives copies that are laid out with padding.
    """
    tokens, width = sum(lengths), tower.width
    inner = (tower.matrices / tower.depth - 4 * width**2) / (2 * width)
    kept = tokens * (5 * width + inner) + tokens * 3 * width
    if unpacked:  # laying out keeps queries, keys and values as they were, too
        kept += tokens * (4 if how.fused_attention else 3) * width
    scores, bytes_more = attention(tower.heads, [(n, n, 1) for n in lengths], how)
    kept_bytes = how.element * (kept + scores) + bytes_more + 2 * tokens * NORM_BYTES
    scratch = how.element * max(tokens * (3 * inner + 2 * width), 2 * scores + 6 * tokens * width)
    return Piece(part, kept_bytes, how.element * tokens * width, scratch, block=True)


def _cross_image(config: Config, shape: Shape, work: Work, how: Arithmetic) -> Iterator[Piece]:
    objectives, sizes = config.objectives, shape.sizes
    whole, hidden = image_tokens(sizes, work, objectives)
    aligned = hidden if objectives.alignment_inputs == "masked" else whole
    yield from _readings(
        config,
        how,
        Stack(
            "cross_image",
            sizes.vision.width,
            work.length,
            sizes.cross_heads,
            sizes.cross_ratio,
            sizes.cross_depth,
            restored=hidden if objectives.image else 0,
            kept=hidden if objectives.image else 0,
            matched=aligned if objectives.itm else 0,
            keeps=bool(objectives.itm),
        ),
        work.length,
    )


def _cross_text(config: Config, shape: Shape, work: Work, how: Arithmetic) -> Iterator[Piece]:
    objectives, sizes = config.objectives, shape.sizes
    whole, hidden = image_tokens(sizes, work, objectives)
    yield from _readings(
        config,
        how,
        Stack(
            "cross_text",
            sizes.text.width,
            hidden if objectives.hide == "both" else whole,
            sizes.cross_heads,
            sizes.cross_ratio,
            sizes.cross_depth,
            restored=work.length if objectives.text else 0,
            kept=work.restored_places if objectives.text else 0,
            matched=work.length if objectives.itm else 0,
            keeps=True,
        ),
        hidden if objectives.alignment_inputs == "masked" else whole,
    )


def _readings(config: Config, how: Arithmetic, stack: Stack, aligned: float) -> Iterator[Piece]:
    """One pass over both, or one for each where they read different contexts.

    Args:
        stack: its context is what is restored from.
        aligned: tokens of the context that is matched.
    """
    objectives = config.objectives
    apart = (objectives.alignment_inputs == "masked") != (objectives.hide == "both")
    if apart and stack.restored and stack.matched:
        alone = stack.part == "cross_text"
        yield from stack_pieces(replace(stack, matched=0, keeps=alone), how)
        yield from stack_pieces(replace(stack, context=aligned, restored=0, kept=0, keeps=True), how)
    else:
        yield from stack_pieces(stack if stack.restored else replace(stack, context=aligned), how)


def _decoder(config: Config, shape: Shape, work: Work, how: Arithmetic) -> Iterator[Piece]:
    sizes, drops = shape.sizes, config.objectives.image_masking == "drop"
    tokens = sizes.patches + 1
    stack = Stack(
        "image_decoder",
        sizes.vision.width,
        work.length,
        sizes.cross_heads,
        sizes.cross_ratio,
        sizes.decoder_depth,
        restored=tokens,
        kept=work.hidden_patches,
        matched=0,
        keeps=True,
        given=not drops,
    )
    yield from stack_pieces(stack, how)


def _words(shape: Shape, work: Work, how: Arithmetic) -> Piece:
    """The hidden tokens and their log-probabilities, which the loss keeps in fp32."""
    sizes, tokens = shape.sizes, work.hidden_tokens
    logits = tokens * sizes.vocabulary
    kept = tokens * sizes.text.width * how.element + logits * FP32
    return Piece("heads", kept, scratch=logits * (FP32 + (how.element if how.element != FP32 else 0)))


def _pixels(shape: Shape, work: Work, how: Arithmetic) -> Piece:
    values = work.hidden_patches * shape.sizes.patch_values
    kept = values * how.element
    if not how.fused_losses:
        kept += values * (FP32 if how.element == FP32 else 2 * FP32)
    return Piece("heads", kept, scratch=values * (how.element + FP32))
