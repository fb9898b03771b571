"""A small synthetic world in which bags of words are not enough: nine things, two or three on a grid of four cells.

The world of `data_tools synth` has so many scenes that a batch hardly ever has two with the same things: ITC and ITM
need not know what is where. Here a batch of 64 is full of scenes with the same things in other places, and with the
same colours on other shapes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import combinations

from data_tools.record import Record
from data_tools.synth.blocks import Dice
from data_tools.synth.scenes import CELLS, COLOURS, SHAPES, Scene, describe, picture, scene_key, scenes_of

THINGS = frozenset((colour, shape) for colour in list(COLOURS)[:3] for shape in list(SHAPES)[:3])
WORDS = tuple(dict.fromkeys([*(colour for colour, _ in sorted(THINGS)), *(shape for _, shape in sorted(THINGS))]))
OBJECTS = (2, 3)
ATTRIBUTES = ("colour", "shape")
ANSWERS = 10  # as many as VQA v2 has for each question


def scenes() -> list[Scene]:
    """All 3,402, in an order that is the same everywhere."""
    every = [scene for objects in OBJECTS for scene in scenes_of(objects) if set(scene) - {None} <= THINGS]
    return Dice("claim").shuffled(every)


def captioned() -> Iterator[Record]:
    """Every scene with the one caption that describes all of it."""
    for scene in scenes():
        yield Record(
            key=scene_key(scene),
            image=picture(scene),
            captions=[describe(scene)],
            source="claim-scenes",
            fields={"group": scene_key(scene)},
        )


def foils(held_out: Container[str]) -> Iterator[Record]:
    """A scene, its caption and its twin's, then the twin likewise: each is the other's foil.

    Args:
        held_out: keys of scenes; both scenes must be among them, so that training has seen neither caption.
    """
    for scene in scenes():
        for other, attribute in _twins(scene):
            if scene_key(scene) < scene_key(other) and scene_key(scene) in held_out and scene_key(other) in held_out:
                for shown, false in ((scene, other), (other, scene)):
                    columns = {"caption": describe(shown), "foil": describe(false), "swapped": attribute}
                    key = f"{scene_key(shown)}-{scene_key(false)}"
                    yield Record(key=key, image=picture(shown), captions=(), source="claim-foils", columns=columns)


def questions() -> Iterator[Record]:
    """One question about each scene, in VQA's form; the question alone is right a third of the time.

    The scene is the group, so that a split sends a question where `captioned`'s scene goes.
    """
    dice = Dice("claim/questions")
    for number, scene in enumerate(scenes()):
        question, answer, kind = dice.pick(list(_askable(scene)))
        columns = {"question_id": number, "question": question, "answers": [answer] * ANSWERS, "question_type": kind}
        key = scene_key(scene)
        yield Record(key=key, image=picture(scene), source="claim-vqa", fields={"group": key}, columns=columns)


def _askable(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Questions with only one answer, that answer, and the kind of question."""
    things = [thing for thing in scene if thing]
    for cell, thing in zip(CELLS, scene, strict=True):
        if thing:
            yield f"what colour is the thing {cell}?", thing[0], "colour of a place"
            yield f"what shape is the thing {cell}?", thing[1], "shape of a place"
    for colour, shape in things:
        if [s for _, s in things].count(shape) == 1:
            yield f"what colour is the {shape}?", colour, "colour of a shape"
        if [c for c, _ in things].count(colour) == 1:
            yield f"what shape is the {colour} thing?", shape, "shape of a colour"


def _twins(scene: Scene) -> Iterator[tuple[Scene, str]]:
    """Every scene in which two things that differ in both colour and shape exchange one of them, and which."""
    for i, j in combinations(range(len(scene)), 2):
        if (a := scene[i]) and (b := scene[j]) and a[0] != b[0] and a[1] != b[1]:
            swapped = (((b[0], a[1]), (a[0], b[1])), ((a[0], b[1]), (b[0], a[1])))
            for attribute, (first, second) in zip(ATTRIBUTES, swapped, strict=True):
                twin = list(scene)
                twin[i], twin[j] = first, second
                yield tuple(twin), attribute
