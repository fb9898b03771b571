"""Hypotheses about single cells of a scene, some of which a cover hides: entailment, neutral or contradiction.

Three scenes and three hypotheses make a block, in which each scene has each label once and each hypothesis has each
label once: chance is 1/3 from the hypothesis alone and from the image alone. Every scene of a block shows as many
things as the others, under one cover.

A third of the hypotheses are denials. If half were, what a scene shows would say nothing about a label without the
polarity, and training could get stuck at telling what is covered and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import repeat

from mvlm.data.shards.schema import LABELS

from .blocks import Block, Dice, SyntheticSample, fresh, numbered, one_kind, place
from .scenes import CELLS, COLOURS, COVER, SHAPES, THINGS, Thing

SAYS = {  # a statement about a cell and its denial; the blanks are colour, shape and cell
    "thing": ("There is a {0} {1} {2}.", "There is no {0} {1} {2}."),
    "colour": ("The {2} cell is {0}.", "The {2} cell is not {0}."),
    "shape": ("The {2} cell holds a {1}.", "The {2} cell holds no {1}."),
}


def entailment(count: int, seed: int, held_out: frozenset[Thing] = frozenset()) -> Iterator[SyntheticSample]:
    """`count` rows, in blocks of nine; all scenes of a block hold something held out, or none does."""
    draw = partial(_block, Dice(f"entailment/{seed}"), held_out)
    return numbered(fresh(repeat(draw)), "entailment", count, seed)


def _block(dice: Dice, held_out: frozenset[Thing]) -> Block | None:
    cells = dice.sample(range(len(CELLS)), 3)
    things = dice.things(3)
    kinds = [dice.pick(list(SAYS)) for _ in cells]
    denied = [dice.pick((True, False, False)) for _ in cells]
    labels = [[LABELS[(about - scene) % 3] for about in range(3)] for scene in range(3)]
    scenes = []
    for row in labels:
        shown: dict[int, Thing] = {}
        for cell, thing, kind, deny, label in zip(cells, things, kinds, denied, row, strict=True):
            so = (label == "entailment") != deny
            shown[cell] = COVER if label == "neutral" else _holding(thing, kind, so, dice)
        (left,) = set(range(len(CELLS))) - shown.keys()
        scenes.append(place(shown | {left: dice.pick(THINGS)}))
    if not one_kind(scenes, held_out) or len(set(scenes)) < len(scenes):
        return None
    hypotheses = [
        SAYS[kind][deny].format(*thing, CELLS[cell])
        for cell, thing, kind, deny in zip(cells, things, kinds, denied, strict=True)
    ]
    return [
        SyntheticSample((scene,), {"sentence": hypothesis, "label": label})
        for scene, row in zip(scenes, labels, strict=True)
        for hypothesis, label in zip(hypotheses, row, strict=True)
    ]


def _holding(thing: Thing, kind: str, so: bool, dice: Dice) -> Thing:
    """A thing for which what a sentence of this kind says about `thing` is true if `so`, and otherwise false.

    If it is false, one of colour and shape is still right more often than by chance: the near miss is hard.
    """
    colour, shape = thing
    other_colour = dice.pick([name for name in COLOURS if name != colour])
    other_shape = dice.pick([name for name in SHAPES if name != shape])
    if kind == "colour":
        return (colour if so else other_colour, dice.pick((shape, other_shape)))
    if kind == "shape":
        return (dice.pick((colour, other_colour)), shape if so else other_shape)
    return thing if so else dice.pick(((colour, other_shape), (other_colour, shape), (other_colour, other_shape)))
