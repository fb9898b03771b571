"""What the tasks share: dice that fall the same everywhere, samples, and blocks of scenes used only once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, TypeVar

from mvlm.errors import UserError

from .scenes import CELLS, THINGS, Scene, Thing

T = TypeVar("T")

MAX_TRIES = 3000
"""Draws for one block before the world counts as used up."""


@dataclass(frozen=True)
class SyntheticSample:
    """A row to be made: `columns` are those of the task's schema besides key, images, source and sizes."""

    scenes: tuple[Scene, ...]  # one, or the left and the right one
    columns: dict[str, Any]
    group: str = ""  # samples of different groups share no scene
    key: str = ""


Block = list[SyntheticSample]


class Dice:
    """Seeded choices that are the same in every version of Python: its documentation promises `random()` alone."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        left = list(options)
        return [left.pop(int(self._random() * len(left))) for _ in range(count)]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.sample(options, len(options))

    def coin(self) -> bool:
        return self._random() < 0.5

    def scene(self, things: Sequence[Thing]) -> Scene:
        """The things on random cells."""
        return place(dict(zip(self.sample(range(len(CELLS)), len(things)), things, strict=True)))

    def things(self, count: int) -> list[Thing]:
        """Any things, with repetition."""
        return [self.pick(THINGS) for _ in range(count)]


def place(things: dict[int, Thing]) -> Scene:
    """The scene with these things on these cells."""
    return tuple(things.get(cell) for cell in range(len(CELLS)))


def novel(scene: Scene, held_out: frozenset[Thing]) -> bool:
    return not held_out.isdisjoint(scene)


def one_kind(scenes: Sequence[Scene], held_out: frozenset[Thing]) -> bool:
    """All scenes hold something held out, or none does, so that their rows stay in one split."""
    return len({novel(scene, held_out) for scene in scenes}) == 1


def twin(scene: Scene, attribute: int, dice: Dice) -> tuple[Scene, int, int] | None:
    """The scene with the colours (attribute 0) or shapes (1) of two things exchanged, and their cells.

    Only things that differ in both are taken, so that colours and shapes stay what they were and only their binding
    changes. None if there are no two such things.
    """
    pairs = [
        (i, j)
        for i, j in combinations(range(len(scene)), 2)
        if (a := scene[i]) and (b := scene[j]) and a[0] != b[0] and a[1] != b[1]
    ]
    if not pairs:
        return None
    i, j = dice.pick(pairs)
    a, b = scene[i], scene[j]
    assert a and b
    things = {cell: thing for cell, thing in enumerate(scene) if thing}
    things[i], things[j] = ((b[0], a[1]), (a[0], b[1])) if attribute == 0 else ((a[0], b[1]), (b[0], a[1]))
    return place(things), i, j


def numbered(blocks: Iterator[Block], name: str, count: int, seed: int) -> Iterator[SyntheticSample]:
    """The first `count` samples with keys and groups; the last block may be cut."""
    samples = (
        SyntheticSample(sample.scenes, sample.columns, group=f"{name}-{seed}-block-{number:06d}")
        for number, block in enumerate(blocks)
        for sample in block
    )
    for number, sample in enumerate(islice(samples, count)):
        yield SyntheticSample(sample.scenes, sample.columns, sample.group, f"{name}-{seed}-{number:07d}")


def fresh(draws: Iterable[Callable[[], Block | None]]) -> Iterator[Block]:
    """From each draw, the first block that is not None and whose scenes no earlier block has.

    Raises:
        UserError: no such block is found.
    """
    used: set[Scene] = set()
    for draw in draws:
        for _ in range(MAX_TRIES):
            block = draw()
            scenes = {scene for sample in block or () for scene in sample.scenes}
            if block is not None and used.isdisjoint(scenes):
                used |= scenes
                yield block
                break
        else:
            raise UserError(
                f"This world has too few distinct scenes for --count: {len(used):,} are used up; give a smaller one."
            )
