"""A scene, its caption, and a foil: the caption with the colours or the shapes of two things exchanged.

Rows come in twos: the foil of one is the caption of the other. A scorer that sees only the text is right in
exactly one of the two, so its chance is 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import repeat

from .blocks import Block, Dice, SyntheticSample, fresh, numbered, one_kind, twin
from .scenes import Thing, describe

ATTRIBUTES = ("colour", "shape")


def foils(count: int, seed: int, held_out: frozenset[Thing] = frozenset()) -> Iterator[SyntheticSample]:
    """`count` rows; both scenes of two such rows hold something held out, or neither does."""
    draw = partial(_block, Dice(f"foils/{seed}"), held_out)
    return numbered(fresh(repeat(draw)), "foils", count, seed)


def _block(dice: Dice, held_out: frozenset[Thing]) -> Block | None:
    scene = dice.scene(dice.things(dice.pick((2, 3, 3, 3))))  # there are far more scenes of three
    attribute = dice.pick((0, 1))
    found = twin(scene, attribute, dice)
    if found is None or not one_kind((scene, found[0]), held_out):
        return None
    return [
        SyntheticSample(
            (shown,), {"caption": describe(shown), "foil": describe(other), "swapped": ATTRIBUTES[attribute]}
        )
        for shown, other in ((scene, found[0]), (found[0], scene))
    ]
