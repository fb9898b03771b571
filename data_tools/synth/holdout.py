"""Splits whose training part never shows some colours on some shapes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from mvlm.errors import UserError

from ..record import Record
from ..split import Split
from .scenes import THINGS, Thing

NOVEL = "novel"
"""The split of every scene that shows something held out; also the name of the field that says so."""

MOST = 8


@dataclass(frozen=True)
class NovelSplit(Split):
    """Scenes with something held out go to `novel`, the others are divided as in any split."""

    def allot(self, record: Record) -> str:
        return NOVEL if record.fields[NOVEL] else super().allot(record)


def with_novel(split: Split | None) -> Split:
    """`split` with the part `novel` beside it, or the parts `novel` and `train` if nothing is to be split.

    Raises:
        UserError: the split has a part of that name.
    """
    shares = split.shares if split else {"train": 1.0}
    if NOVEL in shares:
        raise UserError(f"--split names {NOVEL!r}, which --holdout-pairs makes: give that part another name.")
    # First, since a share of 0 at the end would catch what rounding leaves over.
    return NovelSplit({NOVEL: 0.0, **shares}, split.field if split else "group")


def held_out(count: int, seed: int) -> frozenset[Thing]:
    """`count` things by seed; of every colour and every shape, some things are not held out.

    Raises:
        UserError: `count` is not from 0 to MOST.
    """
    if not 0 <= count <= MOST:
        raise UserError(f"--holdout-pairs {count} is out of range: of {len(THINGS)} pairs hold out 0 to {MOST}.")
    left = Counter(name for thing in THINGS for name in thing)
    chosen: list[Thing] = []
    for thing in sorted(THINGS, key=lambda thing: hashlib.sha256(f"{seed}/{'-'.join(thing)}".encode()).digest()):
        # Half of each is kept, so that what is held out spreads over the colours and shapes.
        if len(chosen) < count and left[thing[0]] > 2 and left[thing[1]] > 3:
            chosen.append(thing)
            left.subtract(thing)
    return frozenset(chosen)
