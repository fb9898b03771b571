"""From an entry of iconify's JSON to an SVG file: the box of its drawing, and an alias's rotations and flips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SIDE = 64  # pixels
BOX = {"left": 0, "top": 0, "width": 16, "height": 16}
"""The format's defaults."""

BLACK = ' color="#000"'
"""The colour of what is drawn in the colour of the text."""

MOST_PARENTS = 5
"""Parents in a row; the format's own readers follow no more."""


class Malformed(Exception):
    """An entry that is not a drawing; the message is the reason."""


def resolved(name: str, icons: Mapping[str, Any], aliases: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of an icon, or of an alias with those of its parents: the alias's own values take precedence, but
    quarter turns add up, and two flips undo each other.

    Raises:
        Malformed: a parent is missing, or too far away.
    """
    found: dict[str, Any] = {}
    for _ in range(MOST_PARENTS + 1):
        entry = icons.get(name) or aliases.get(name)
        if not isinstance(entry, dict):
            raise Malformed("alias has no parent")
        for key, value in entry.items():
            if key == "rotate":
                found[key] = (found.get(key, 0) + value) % 4
            elif key in ("hFlip", "vFlip"):
                found[key] = bool(found.get(key)) != bool(value)
            else:
                found.setdefault(key, value)
        if name in icons:
            return found
        name = str(entry.get("parent"))
    raise Malformed("alias has too many parents")


def svg_of(entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The SVG file of a resolved entry, `SIDE` pixels a side, black where the drawing leaves the colour open.

    Args:
        defaults: the box that the set gives to icons without one.

    Raises:
        Malformed: there is no body, or no valid box.
    """
    body = entry.get("body")
    if not isinstance(body, str) or not body:
        raise Malformed("icon has no drawing")
    left, top, width, height = (entry.get(key, defaults.get(key, BOX[key])) for key in BOX)
    numbers = (left, top, width, height)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers) or min(width, height) <= 0:
        raise Malformed("icon has no box")
    turns, flips = int(entry.get("rotate", 0)) % 4, (bool(entry.get("hFlip")), bool(entry.get("vFlip")))
    if turns or any(flips):
        x, y = left + width / 2, top + height / 2
        across, along = (-1 if flip else 1 for flip in flips)
        move = f"translate({_n(x)} {_n(y)}) rotate({90 * turns}) scale({across} {along}) translate({_n(-x)} {_n(-y)})"
        body = f'<g transform="{move}">{body}</g>'
        if turns % 2:
            width, height = height, width
            left, top = x - width / 2, y - height / 2
    box = " ".join(map(_n, (left, top, width, height)))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIDE}" height="{SIDE}" viewBox="{box}"{BLACK}>{body}</svg>'
    )


def to_copy(svg: str) -> str:
    """The same drawing for a page, where it takes the colour of the text around it."""
    return svg.replace(BLACK, "", 1)


def _n(value: float) -> str:
    return f"{value:g}" if value == float(f"{value:g}") else repr(float(value))
