"""What the stacks of the cross encoders and of the image decoder keep, block by block; see mvlm/kernels/fusion.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mvlm.estimate.kept import NORM_BYTES, Arithmetic, Piece, attention


@dataclass(frozen=True)
class _Look:
    """Queries that look at keys, as mvlm/kernels/fusion.py has it; of `whole` tensors no rows are copied."""

    queries: float
    keys: float
    count: int = 1
    whole: bool = True
    drawn: bool = False


@dataclass(frozen=True)
class Stack:
    """A cross encoder's stack: sequences of `width` that read `context` tokens of another width.

    Attributes:
        restored: tokens of the hidden sequence, 0 = none; `kept` of them are computed by the last block.
        matched: tokens of a sequence of a match, 0 = none.
        keeps: the last block leaves places out.
    """

    part: str
    width: int
    context: float
    heads: int
    ratio: int
    depth: int
    restored: float
    kept: float
    matched: float
    keeps: bool
    given: bool = False  # the first block's input is kept by what came before


def stack_pieces(stack: Stack, how: Arithmetic) -> Iterator[Piece]:
    for number in range(stack.depth):
        yield _cross_block(stack, number == 0, number == stack.depth - 1, how)
    tokens = stack.kept + (3 if stack.matched else 0)
    yield Piece(stack.part, tokens * (2 * stack.width * how.element + NORM_BYTES))


def _cross_block(stack: Stack, first: bool, last: bool, how: Arithmetic) -> Piece:
    """Self-attention, cross-attention, feed-forward; the first block takes the sources, the last gives what is kept."""
    width, restored, matched = stack.width, stack.restored, stack.matched
    sequences = (1 if first else 3) if matched else 0
    before = restored + sequences * matched
    queries = (stack.kept + sequences) if last and stack.keeps else before
    own = (1 if last else matched) if matched else 0
    after = queries + 2 * own if first else queries

    kept = before * width * (1 if stack.given and first else 2)  # the input and what its norm gives
    if last and stack.keeps:
        kept += queries * width
    self_looks, split = [], stack.kept if last else restored
    if not last and restored == matched:
        self_looks.append(_Look(before, before, 1 + sequences))
    else:
        if restored:
            self_looks.append(_Look(split, restored, whole=not matched))
        if matched:
            alone = not restored
            self_looks.append(_Look(queries - split, sequences * matched, sequences, whole=alone))
    cross_looks = [_Look(after, stack.context)]
    if matched:
        cross_looks = [_Look(after - own, stack.context), _Look(own, stack.context, drawn=True)]

    more, bytes_more, scores = 0.0, 0.0, 0.0
    for tokens, keys, looks in ((queries, before, self_looks), (after, stack.context, cross_looks)):
        elements, weights, statistics = _looks(stack, tokens, keys, looks, how)
        more, scores, bytes_more = more + elements + weights, max(scores, weights), bytes_more + statistics
    kept += more + after * width * (4 + stack.ratio)
    rows = before + 2 * after
    scratch = max(after * width * (3 * stack.ratio + 2), 2 * scores + 6 * max(before, after) * width)
    return Piece(
        stack.part,
        how.element * kept + bytes_more + rows * NORM_BYTES,
        how.element * before * width * (0 if stack.given and first else 1),
        how.element * scratch,
        block=True,
    )


def _looks(stack: Stack, tokens: float, keys: float, looks: list[_Look], how: Arithmetic) -> tuple[float, float, float]:
    """Of one attention: elements of queries, keys, values and results; of weights; bytes of statistics."""
    width, several = stack.width, len(looks) > 1
    weights, statistics = attention(stack.heads, [(look.queries, look.keys, look.count) for look in looks], how)
    kept = float(tokens * width)  # what goes into the last product
    if not how.fused_attention:  # its products read copies
        return kept + sum(look.queries + 2 * look.keys for look in looks) * width, weights, statistics
    if several:
        kept += tokens * width  # laid end to end beside the results
    viewed = [look for look in looks if look.whole or look.count == 1]
    kept += tokens * width * bool(viewed)
    kept += 2 * keys * width * any(not look.drawn for look in viewed)
    for look in looks:
        if look not in viewed:
            kept += (look.queries + 2 * look.keys) * width
        elif look.drawn:
            kept += 2 * look.keys * width
    return kept, weights, statistics
