"""An independent reading of synthetic scenes: it knows pixels and the grammar of texts, but not how either is made."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

NAMED = {
    (255, 0, 0): "red",
    (0, 160, 0): "green",
    (0, 0, 255): "blue",
    (255, 255, 0): "yellow",
    (160, 32, 240): "purple",
    (255, 140, 0): "orange",
}
CORNERS = {"top left": (0, 0), "top right": (0, 16), "bottom left": (16, 0), "bottom right": (16, 16)}
COLOURS, SHAPES = set(NAMED.values()), {"circle", "square", "triangle", "star"}
COVER = "cover"

View = dict[str, str]
"""The things in a scene, such as "red circle" or COVER, by corner; empty corners are left out."""


def seen_shape(mask: np.ndarray) -> str:
    """Name the shape in a mask [16, 16] by the widths of its rows alone, not by the formulas that drew it."""
    widths = mask.sum(1)
    rows = widths[widths > 0]
    if (rows == rows[0]).all():
        return "square"
    if (np.diff(rows) >= 0).all():
        return "triangle"
    changes = np.sign(np.diff(rows))
    changes = changes[changes != 0]
    return "circle" if (changes[:-1] >= changes[1:]).all() else "star"  # a circle widens, then narrows, once


@cache
def view(image: bytes) -> View:
    """The things in an encoded scene of 32 x 32 pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    cells = {place: seen_cell(pixels[y : y + 16, x : x + 16].tobytes()) for place, (y, x) in CORNERS.items()}
    return {place: thing for place, thing in cells.items() if thing}


@cache
def seen_cell(pixels: bytes) -> str:
    """The thing in a corner of 16 x 16 RGB pixels; "" if it is empty."""
    cell = np.frombuffer(pixels, np.uint8).reshape(16, 16, 3)
    mask = (cell != 255).any(2)
    if not mask.any():
        return ""
    (colour,) = {tuple(map(int, pixel)) for pixel in cell[mask]}
    return COVER if colour == (128, 128, 128) and mask.all() else f"{NAMED[colour]} {seen_shape(mask)}"


def caption(seen: View) -> str:
    """The caption that names every thing and its corner."""
    return ", ".join(f"{thing} {place}" for place, thing in seen.items())


def number(noun: str, seen: View) -> int:
    """The number of things that a noun such as "red things", "circles" or "red circle" describes."""
    words = [word.removesuffix("s") for word in noun.split()]
    named = [word for word in words if word in COLOURS | SHAPES]
    assert named and len(words) - len(named) == ("thing" in words), noun
    return sum(all(word in thing.split() for word in named) for thing in seen.values())


def answer(question: str, seen: View) -> str:
    """The only correct answer; fails if there is none or more than one."""
    if found := re.fullmatch(r"What colour is the (\w+)\?", question):
        (thing,) = [thing for thing in seen.values() if thing.endswith(found[1])]
        return thing.split()[0]
    if found := re.fullmatch(r"What shape is the (\w+) thing\?", question):
        (thing,) = [thing for thing in seen.values() if thing.startswith(found[1])]
        return thing.split()[1]
    if found := re.fullmatch(r"Where is the (\w+ \w+)\?", question):
        (place,) = [place for place, thing in seen.items() if thing == found[1]]
        return place
    if found := re.fullmatch(r"How many ([\w ]+) are there\?", question):
        return str(number(found[1], seen))
    found = re.fullmatch(r"Is there an? (\w+ \w+)\?", question)
    assert found, question
    return "yes" if found[1] in seen.values() else "no"


def true_of(sentence: str, left: View, right: View) -> bool:
    """Whether a sentence about two images is true."""
    if found := re.fullmatch(r"(It is not so that both images|Both images) show an? (\w+ \w+)\.", sentence):
        return (found[2] in left.values() and found[2] in right.values()) == (found[1] == "Both images")
    if found := re.fullmatch(r"(At least one|Neither) image shows an? (\w+ \w+)\.", sentence):
        return (found[2] in [*left.values(), *right.values()]) == (found[1] != "Neither")
    if found := re.fullmatch(r"The (left|right) image (shows|does not show) an? (\w+ \w+)\.", sentence):
        side = left if found[1] == "left" else right
        return (found[3] in side.values()) == (found[2] == "shows")
    if found := re.fullmatch(r"Both images show the same number of ([\w ]+)\.", sentence):
        return number(found[1], left) == number(found[1], right)
    if found := re.fullmatch(r"The images show different numbers of ([\w ]+)\.", sentence):
        return number(found[1], left) != number(found[1], right)
    if found := re.fullmatch(r"There are (not )?more ([\w ]+) in the left image than in the right one\.", sentence):
        return (number(found[2], left) > number(found[2], right)) == (not found[1])
    found = re.fullmatch(r"The number of ([\w ]+) in both images together is (one|two|three)\.", sentence)
    assert found, sentence
    return number(found[1], left) + number(found[1], right) == {"one": 1, "two": 2, "three": 3}[found[2]]


def relation(hypothesis: str, seen: View) -> str:
    """Whether the scene makes the hypothesis an entailment, neutral or a contradiction."""
    (place,) = [place for place in CORNERS if place in hypothesis]
    if seen.get(place) == COVER:
        return "neutral"
    mentioned = [word for word in re.findall(r"\w+", hypothesis) if word in COLOURS | SHAPES]
    negated = bool({"no", "not"} & set(hypothesis.split()))
    holds = set(mentioned) <= set(seen.get(place, "").split())
    return "entailment" if holds != negated else "contradiction"


def counts(views: Sequence[View]) -> list[int]:
    """The number of things in each image, in all and by colour and shape: what counting tells without the text."""
    names = sorted(COLOURS | SHAPES)
    return [value for seen in views for value in (len(seen), *(number(name, seen) for name in names))]
