"""Scenes with the one caption that says all: "red circle top left, blue star bottom right"."""

from __future__ import annotations

from collections.abc import Iterator

from .blocks import SyntheticSample
from .scenes import Thing, describe, distinct_scenes, scene_key


def captions(count: int, seed: int, held_out: frozenset[Thing] = frozenset()) -> Iterator[SyntheticSample]:
    """Distinct scenes, the numbers of objects as even as the supply allows; a scene is its own group."""
    for scene in distinct_scenes(count, seed):
        key = scene_key(scene)
        yield SyntheticSample((scene,), {"captions": [describe(scene)]}, key, key)
