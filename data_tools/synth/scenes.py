"""The small world: grids of coloured shapes, drawn without any library.

A scene is a 2 x 2 grid whose cells hold a coloured shape or nothing, 1 to 3 shapes in all; colours and shapes are
independent of each other and of the cell. The same count and seed give the same bytes on every machine: scenes are
ordered by a hash or drawn with `Dice`, pixels come from whole-number arithmetic, and the PNGs are stored without
compression.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import struct
import zlib
from collections.abc import Callable

from mvlm.errors import UserError

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (160, 32, 240),
    "orange": (255, 140, 0),
}
BACKGROUND = (255, 255, 255)  # far from every colour, so that empty and full cells differ clearly
CELL = 16  # pixels a side
CELLS = ("top left", "top right", "bottom left", "bottom right")  # in reading order
MAX_OBJECTS = 3


def _in_star(u: int, v: int) -> bool:
    """A hexagram: a triangle that points up and one that points down."""
    return any(w <= 8 and 23 * abs(u) <= 13 * (w + 15) for w in (v, -v))


# Whether a shape covers a pixel, by twice its offset (u right, v down) from the cell's centre: odd, -15 to 15.
SHAPES: dict[str, Callable[[int, int], bool]] = {
    "circle": lambda u, v: u * u + v * v <= 15 * 15,
    "square": lambda u, v: max(abs(u), abs(v)) <= 13,
    "triangle": lambda u, v: abs(v) <= 15 and 2 * abs(u) <= v + 15,
    "star": _in_star,
}

Thing = tuple[str, str]  # colour, shape
Scene = tuple[Thing | None, ...]  # one entry per cell

THINGS: list[Thing] = [(colour, shape) for colour in COLOURS for shape in SHAPES]
COVER: Thing = ("grey", "cover")
"""Hides whatever is in the cell; only in scenes of the entailment task."""
COVER_GREY = bytes((128, 128, 128))


def scenes_of(objects: int) -> list[Scene]:
    """Every scene with that many objects, in a fixed order."""
    scenes = []
    for cells in itertools.combinations(range(len(CELLS)), objects):
        for chosen in itertools.product(THINGS, repeat=objects):
            placed = dict(zip(cells, chosen, strict=True))
            scenes.append(tuple(placed.get(cell) for cell in range(len(CELLS))))
    return scenes


def distinct_scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes without repetition, the numbers of objects as even as the supply of distinct scenes allows.

    Raises:
        UserError: there are not that many scenes.
    """
    supply = [scenes_of(objects) for objects in range(1, MAX_OBJECTS + 1)]
    if not 0 < count <= (total := sum(map(len, supply))):
        raise UserError(f"--count {count} is out of range: there are {total} distinct scenes, so give 1 to {total}.")
    chosen: list[Scene] = []
    for kinds_left, scenes in zip(range(len(supply), 0, -1), supply, strict=True):
        share = min(len(scenes), (count - len(chosen)) // kinds_left)
        chosen += sorted(scenes, key=lambda scene: _rank(scene, seed))[:share]
    return sorted(chosen, key=lambda scene: _rank(scene, seed))


def _rank(scene: Scene, seed: int) -> bytes:
    """A seeded shuffle that no library's random numbers can change."""
    return hashlib.sha256(f"{seed}/{scene_key(scene)}".encode()).digest()


def scene_key(scene: Scene) -> str:
    """Equal for equal scenes only: "red-circle_none_none_blue-star"."""
    return "_".join("-".join(thing) if thing else "none" for thing in scene)


def describe(scene: Scene) -> str:
    """Each object in reading order: colour, shape, place."""
    return ", ".join(f"{thing[0]} {thing[1]} {cell}" for thing, cell in zip(scene, CELLS, strict=True) if thing)


def with_article(thing: Thing) -> str:
    """Such as "a red circle" or "an orange star"."""
    return f"a{'n' if thing[0][0] in 'aeiou' else ''} {thing[0]} {thing[1]}"


def draw(scene: Scene) -> list[bytes]:
    """The scene's pixels: 32 rows of 32 x 3 bytes RGB."""
    cells = [_draw_cell(thing) for thing in scene]
    halves = (cells[:2], cells[2:])
    return [left + right for half in halves for left, right in zip(*half, strict=True)]


@functools.cache
def _draw_cell(thing: Thing | None) -> list[bytes]:
    offsets = range(1 - CELL, CELL, 2)
    if thing is None:
        return [bytes(BACKGROUND) * CELL for _ in offsets]
    if thing == COVER:
        return [COVER_GREY * CELL for _ in offsets]
    colour, covers = COLOURS[thing[0]], SHAPES[thing[1]]
    return [b"".join(bytes(colour if covers(u, v) else BACKGROUND) for u in offsets) for v in offsets]


@functools.lru_cache(256)
def picture(scene: Scene) -> bytes:
    """The scene as a PNG file."""
    return png(draw(scene))


def png(rows: list[bytes]) -> bytes:
    """Rows of RGB bytes as a PNG, in one stored block, since compressors differ between versions of zlib."""
    data = b"".join(b"\0" + row for row in rows)
    block = struct.pack("<BHH", 1, len(data), len(data) ^ 0xFFFF) + data
    header = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    stream = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(data))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
