"""How a picture looks: a thumbnail, hashes by which similar pictures are found, and whether two show the same.

Hashes only name candidates, since small drawings on white share hashes by the thousand; `same_picture` decides.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from mvlm.data.images.upright import upright

SIDE = 32
"""Pixels of a thumbnail, each way; the shape of a picture is kept only as `aspect`."""

SCALE = 160
"""Pixels of the longer side, or up to twice as many, of the reduced picture that a thumbnail is made from."""

GROUND = 32
"""Levels by which a plain background may vary."""

SMALL = 0.5
"""Largest share of the width and of the height that a small thing takes up."""

INSET = 0.05
"""Share of a side cut off before hashing, so that lightly cropped copies share a hash with their original."""

CUTS = ((0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1))
"""Whether `INSET` is cut off left, above, right and below, for each of the hashes."""

TOLERANCE = 44
"""Levels of 255 by which thumbnails may differ in a place: at sharp edges, small or cropped copies come near it. A
frown instead of a straight mouth exceeds it."""

BROAD_TOLERANCE = 12
"""The same for the mean of each sixteenth, which copying hardly changes: it tells other colours apart."""

FLAT, FULL_RANGE = 0.15, 128
"""The share of both tolerances that applies to a single colour; from a range of 128 levels on, they apply in full."""

STRAY = 3
"""Places that may differ by more, such as where a thin line fell between two pixels."""

MOST_CROPPED = 0.11
"""Share of its width or height that one picture may lack of the other on each side."""

MOST_SQUEEZED = 2.0
"""How much wider one may be than the other: a copy squeezed into a square shows the same."""

HOPELESS, MISSED = 32, 12
"""Mean differences of brightness, in levels, that no light crop explains: before a search for one, and after its first
step, which brings copies below 10. Most candidates fail there."""

STEPS = 10

LOOK = struct.Struct(f"<{len(CUTS)}Q12s5f{SIDE * SIDE * 3}s")

SEEN = np.dtype([("hashes", "<u8", (len(CUTS),)), ("corners", "u1", (12,))])
"""The beginning of a look: all that it takes to find similar pictures."""


class PerceptualHash(NamedTuple):
    hashes: tuple[int, ...]  # by CUTS
    corners: np.ndarray  # uint8 [12]: the mean colours of its quarters
    aspect: float  # width by height
    box: np.ndarray  # [4]: left, top, right and bottom of the part of the picture that is seen, as shares
    pixels: np.ndarray  # uint8 [SIDE, SIDE, 3]


def perceptual_hash_of(image: Image.Image) -> bytes:
    """The look of a picture as in training, upright and on white: `LOOK.size` bytes for `read_perceptual_hash`."""
    image = upright(image)
    width, height = image.size
    small = image.reduce(max(1, max(width, height) // SCALE))
    box = _content(np.asarray(small, np.int16))
    # The triangle filter's wide support keeps thin lines in place, whichever pixels they fell on.
    square = small.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
    grey = square.convert("F")
    hashes = (_hash(grey, *cuts) for cuts in CUTS)
    corners = square.resize((2, 2), Image.Resampling.BOX).tobytes()
    left, top, right, bottom = box
    shares = (left / small.width, top / small.height, right / small.width, bottom / small.height)
    return LOOK.pack(*hashes, corners, width / height, *shares, square.tobytes())


def _content(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a small thing on a plain background, or else of the whole picture.

    Otherwise the thing would be a few pixels of its thumbnail, and look like any other small thing.
    """
    height, width = pixels.shape[:2]
    ground = pixels[0, 0]
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    stands = (np.abs(pixels - ground).max(2) > GROUND) if np.abs(corners - ground).max() <= GROUND else None
    if stands is None or not stands.any():
        return 0, 0, width, height
    across, down = np.flatnonzero(stands.any(0)), np.flatnonzero(stands.any(1))
    if max(np.ptp(across) / width, np.ptp(down) / height) > SMALL:
        return 0, 0, width, height
    # With some background, since copies may blur its edges.
    more_x, more_y = (1 + int(np.ptp(part)) // 8 for part in (across, down))
    left, top = max(0, int(across[0]) - more_x), max(0, int(down[0]) - more_y)
    return left, top, min(width, int(across[-1]) + 1 + more_x), min(height, int(down[-1]) + 1 + more_y)


def read_perceptual_hash(content: bytes) -> PerceptualHash:
    *hashes, corners, aspect, left, top, right, bottom, pixels = LOOK.unpack(content)
    square = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 3)
    box = np.array([left, top, right, bottom])
    return PerceptualHash(tuple(hashes), np.frombuffer(corners, np.uint8), aspect, box, square)


def _hash(grey: Image.Image, left: int, top: int, right: int, bottom: int) -> int:
    """64 bits: whether each of 8 x 5 patches is brighter than the one to its left, and of 5 x 8 than the one above.

    Copies differ in a few bits, other pictures in about 32; plain ones have hash 0.
    """
    cut = INSET * SIDE
    box = (left * cut, top * cut, SIDE - right * cut, SIDE - bottom * cut)
    bits = [
        np.diff(np.asarray(grey.resize(size, Image.Resampling.BILINEAR, box)), axis=axis) > 0.5
        for size, axis in (((5, 8), 1), ((8, 5), 0))
    ]
    return int.from_bytes(np.packbits(np.concatenate(bits, axis=None)).tobytes(), "big")


def same_picture(one: PerceptualHash, other: PerceptualHash) -> bool:
    """Whether one is a copy of the other as far as the eye can tell from thumbnails.

    A picture that was re-encoded, resized, squeezed by up to `MOST_SQUEEZED` or cropped by up to about 5 % per side is
    a copy; one with a thing that the other lacks, or in another colour or place, is not.
    """
    if not 1 / MOST_SQUEEZED <= one.aspect / other.aspect <= MOST_SQUEEZED:
        return False
    if np.abs(one.box - other.box).max() > MOST_CROPPED:
        return False
    a, b = _smooth(one.pixels.astype(np.float32)), _smooth(other.pixels.astype(np.float32))
    tolerance = FLAT + (1 - FLAT) * min(1, np.ptp(a) / FULL_RANGE, np.ptp(b) / FULL_RANGE)
    if _excess(a, b) <= tolerance:
        return True
    overlaps = (_overlap(a, b), _overlap(b, a))  # the one that was cut from the other lies in it
    return any(overlap is not None and _excess(*overlap) <= tolerance for overlap in overlaps)


def _smooth(image: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        edges = np.pad(image, [(1, 1) if axis == one else (0, 0) for one in range(3)], mode="edge")
        before, after = (edges.take(range(start, start + SIDE), axis) for start in (0, 2))
        image = (before + 2 * image + after) / 4
    return image


def _excess(a: np.ndarray, b: np.ndarray) -> float:
    """How much they differ in the worst place but `STRAY`, or in the worst sixteenth, in units of the tolerances."""
    places = np.abs(a - b).max(2).ravel()
    broad = np.abs((a - b).reshape(4, SIDE // 4, 4, SIDE // 4, 3).mean((1, 3))).max()
    return max(np.partition(places, -1 - STRAY)[-1 - STRAY] / TOLERANCE, broad / BROAD_TOLERANCE)


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """`a` shifted and scaled along each axis to fit `b` best, and `b`; where `a` does not reach, it is filled with `b`.

    The least squares of Lucas and Kanade on the brightness; None if they lead beyond a light crop.
    """
    across = np.linspace(-1 + 1 / SIDE, 1 - 1 / SIDE, SIDE, dtype=np.float32)  # place of each pixel, from -1 to 1
    grey, target = a.mean(2), b.mean(2)
    down, right = (slope * (SIDE / 2) for slope in np.gradient(grey))
    stack = np.stack([grey, right, down], 2)
    frame = np.array([1.0, 0.0, 1.0, 0.0])  # scale and shift, across and down
    for number in range(STEPS):
        moved, inside = _moved(stack, frame, across)
        wrong = (target - moved[..., 0]) * inside
        if np.abs(wrong).mean() > (MISSED if number else HOPELESS):
            return None
        slopes = (
            np.stack([moved[..., 1] * across, moved[..., 1], moved[..., 2] * across[:, None], moved[..., 2]]).reshape(
                4, -1
            )
            * inside.ravel()
        )
        normal = slopes @ slopes.T
        step = np.linalg.solve(normal + np.eye(4) * (1 + 1e-3 * np.trace(normal)), slopes @ wrong.ravel())
        frame += step
        scale, shift = frame[::2], frame[1::2]
        if np.abs([1 - scale + shift, 1 - scale - shift]).max() > 2 * MOST_CROPPED:
            return None
        if np.abs(step).max() < 2e-3:
            break
    moved, inside = _moved(a, frame, across)
    return np.where(inside[:, :, None], moved, b), b


def _moved(image: np.ndarray, frame: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image [SIDE, SIDE, ...] read at scaled and shifted places, and which of those lie inside."""
    places = [((scale * across + shift + 1) * SIDE - 1) / 2 for scale, shift in frame.reshape(2, 2)]
    inside_x, inside_y = ((place > -0.75) & (place < SIDE - 0.25) for place in places)
    for axis, place in zip((1, 0), places, strict=True):
        low = np.floor(place).astype(int)
        share = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (image.take(np.clip(low + one, 0, SIDE - 1), axis) for one in (0, 1))
        image = first + (second - first) * share
    return image, inside_y[:, None] & inside_x
