"""Questions about scenes of three things: colour, shape, place, number, and whether there is something.

Chance, from the question alone or from the image alone (its kind of question given):

| type | answers | question alone | image alone |
|---|---|---|---|
| colour | the six colours | 1/6 | 1/3 |
| shape | the four shapes | 1/4 | 1/3 |
| where | the four cells | 1/4 | 1/3 |
| count | 0, 1, 2 | 1/3 | 1/3 |
| exists | yes, no | 1/2 | 1/2 |

If things are held out, `colour` and `shape` questions have fewer answers, so that their chances rise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from .blocks import Block, Dice, SyntheticSample, fresh, numbered, one_kind, twin
from .scenes import CELLS, COLOURS, SHAPES, Scene, Thing, with_article

OBJECTS = 3
ANSWERS = 10  # VQA v2 has those of ten people; in this world they agree


def questions(count: int, seed: int, held_out: frozenset[Thing] = frozenset()) -> Iterator[SyntheticSample]:
    """`count` rows, as many of each type as blocks allow."""
    samples = numbered(_blocks(Dice(f"vqa/{seed}"), held_out), "vqa", count, seed)
    for number, sample in enumerate(samples):
        yield SyntheticSample(sample.scenes, sample.columns | {"question_id": number}, sample.group, sample.key)


def _blocks(dice: Dice, held_out: frozenset[Thing]) -> Iterator[Block]:
    rows = Counter[str](dict.fromkeys(BLOCKS, 0))

    def draws() -> Iterator[Callable[[], Block | None]]:
        while True:
            behind = min(rows, key=lambda name: rows[name])
            yield partial(BLOCKS[behind], dice, held_out)

    for block in fresh(draws()):
        rows[block[0].columns["question_type"]] += len(block)
        yield block


def _ask(scene: Scene, question: str, answer: str, kind: str) -> SyntheticSample:
    return SyntheticSample((scene,), {"question": question, "answers": [answer] * ANSWERS, "question_type": kind})


def _things(scene: Scene) -> list[Thing]:
    return [thing for thing in scene if thing]


def _all_different(dice: Dice) -> Scene:
    return dice.scene(list(zip(dice.sample(list(COLOURS), OBJECTS), dice.sample(list(SHAPES), OBJECTS), strict=True)))


def _shifted(scene: Scene, names: list[str], attribute: int, by: int) -> Scene:
    """Each thing's attribute moved `by` names on, wrapping round."""

    def shift(thing: Thing) -> Thing:
        moved = names[(names.index(thing[attribute]) + by) % len(names)]
        return (moved, thing[1]) if attribute == 0 else (thing[0], moved)

    return tuple(thing and shift(thing) for thing in scene)


def _colours(dice: Dice, held_out: frozenset[Thing]) -> Block:
    """One arrangement in all colours: each shape has each of them once."""
    scene, names = _all_different(dice), list(COLOURS)
    return [
        _ask(shown, f"What colour is the {shape}?", colour, "colour")
        for shown in (_shifted(scene, names, 0, by) for by in range(len(names)))
        for colour, shape in _things(shown)
    ]


def _shapes(dice: Dice, held_out: frozenset[Thing]) -> Block:
    scene, names = _all_different(dice), list(SHAPES)
    return [
        _ask(shown, f"What shape is the {colour} thing?", shape, "shape")
        for shown in (_shifted(scene, names, 1, by) for by in range(len(names)))
        for colour, shape in _things(shown)
    ]


def _places(dice: Dice, held_out: frozenset[Thing]) -> Block | None:
    """The same three things on the cells in turn: each is on each cell once."""
    scene = dice.scene(dice.things(OBJECTS))
    if len(set(_things(scene))) < OBJECTS:
        return None
    turned = [scene[by:] + scene[:by] for by in range(len(CELLS))]
    return [
        _ask(shown, f"Where is the {thing[0]} {thing[1]}?", cell, "where")
        for shown in turned
        for thing, cell in zip(shown, CELLS, strict=True)
        if thing
    ]


def _counts(dice: Dice, held_out: frozenset[Thing]) -> Block | None:
    """Three names, three scenes: each scene has two of one, one of the next and none of the last."""
    attribute = dice.pick((0, 1))
    names = dice.sample(list((COLOURS, SHAPES)[attribute]), 3)
    others = list((SHAPES, COLOURS)[attribute])
    scenes = []
    for by in range(3):
        twice, once = names[by], names[(by + 1) % 3]
        given = [(name, dice.pick(others)) for name in (twice, twice, once)]
        scenes.append(dice.scene([pair if attribute == 0 else (pair[1], pair[0]) for pair in given]))
    if not one_kind(scenes, held_out):
        return None
    plural = "How many {} things are there?" if attribute == 0 else "How many {}s are there?"
    return [
        _ask(scene, plural.format(name), str(sum(thing[attribute] == name for thing in _things(scene))), "count")
        for scene in scenes
        for name in names
    ]


def _existences(dice: Dice, held_out: frozenset[Thing]) -> Block | None:
    """Two scenes of the same colours and shapes, bound differently: what is asked for is in only one of them."""
    scene = dice.scene(dice.things(OBJECTS))
    found = twin(scene, 0, dice)
    if found is None:
        return None
    other, i, j = found
    asked = {thing for cell in (i, j) for thing in (scene[cell], other[cell]) if thing}
    scenes = (scene, other)
    balanced = all((thing in scene) != (thing in other) for thing in asked)
    if len(asked) < 4 or not balanced or not one_kind(scenes, held_out):
        return None
    return [
        _ask(shown, f"Is there {with_article(thing)}?", "yes" if thing in shown else "no", "exists")
        for shown in scenes
        for thing in sorted(asked)
    ]


BLOCKS: dict[str, Callable[[Dice, frozenset[Thing]], Block | None]] = {
    "colour": _colours,
    "shape": _shapes,
    "where": _places,
    "count": _counts,
    "exists": _existences,
}
