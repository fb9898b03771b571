"""Hashes that differ in a few bits: sorting finds the pairs that comparing each with each finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.near import WORKING, NearJoin

HASHES = 3


def drawn(count: int, distance: int, seed: int = 0) -> np.ndarray:
    """uint64 [count, HASHES], of which one picture in four is another's, but for up to two bits too many."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 1 << 64, (count, HASHES), np.uint64)
    values[:, 2] = np.where(draw.random(count) < 0.5, values[:, 0], values[:, 2])
    for copy in draw.integers(1, count, count // 4):
        flips = draw.choice(64, draw.integers(0, distance + 3), replace=False)
        values[copy, draw.integers(HASHES)] = values[draw.integers(count), 0] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=0
        )
    return values


def each_with_each(values: np.ndarray, distance: int, known: int = 0, among: bool = True) -> Iterator[tuple[int, int]]:
    """The pairs of numbers, by the larger one, then by the smaller."""
    for second in range(known, len(values)):
        before = values[: second if among else known]
        apart = [np.bitwise_count(before[:, number] ^ values[second, 0]) for number in range(HASHES)]
        apart += [np.bitwise_count(before[:, 0] ^ values[second, number]) for number in range(HASHES)]
        yield from ((int(first), second) for first in np.flatnonzero(np.min(apart, 0) <= distance))


def joined(folder: Path, values: np.ndarray, distance: int, memory: int = 1 << 30) -> NearJoin:
    join = NearJoin(folder, memory, HASHES, distance)
    for start in range(0, len(values), 300):
        part = values[start : start + 300]
        join.add(np.arange(start, start + len(part), dtype=np.uint64) * np.uint64(10), part, part[:, 0] % 100)
    return join


@pytest.mark.parametrize(
    ("distance", "known", "among"),
    [(0, 0, True), (1, 0, True), (7, 0, True), (5, 0, True), (5, 300, True), (5, 300, False)],
)
def test_the_pairs_are_those_of_comparing_each_with_each(
    tmp_path: Path, distance: int, known: int, among: bool
) -> None:
    values = drawn(1500, distance)
    expected = list(each_with_each(values, distance, known, among))
    pairs = joined(tmp_path, values, distance).pairs(known, among)
    assert [(first // 10, second // 10) for first, second in pairs] == expected
    assert len(expected) > (100 if among else 20)
    assert pairs.places().tolist() == sorted({10 * place for pair in expected for place in pair})
    second = expected[-1][1]
    assert pairs.earlier(10 * second).tolist() == [10 * a for a, b in expected if b == second]
    assert pairs.earlier(10 * second + 1).tolist() == []
    assert list(tmp_path.iterdir()) == []


def test_memory_changes_nothing(tmp_path: Path) -> None:
    values = drawn(1000, 5)
    once = list(joined(tmp_path, values, 5).pairs())
    assert len(once) > 50
    assert list(joined(tmp_path, values, 5, memory=WORKING * values.size // 7).pairs()) == once


def test_pictures_that_are_all_alike_take_no_time_without_end(tmp_path: Path) -> None:
    """Each is compared with a bounded number of the others, and has a pair."""
    values = np.zeros((3000, HASHES), np.uint64)
    pairs = joined(tmp_path, values, 5).pairs()
    assert len(pairs.places()) == 3000 and len(list(pairs)) < 3000 * 200


def test_nothing_gives_no_pair(tmp_path: Path) -> None:
    assert list(joined(tmp_path, drawn(10, 5)[:0], 5).pairs()) == []
    assert list(joined(tmp_path, drawn(10, 5)[:1], 5).pairs()) == []


@pytest.mark.campaign
def test_the_pairs_of_100_000_are_those_of_comparing_each_with_each(tmp_path: Path) -> None:
    values = drawn(100_000, 5)
    expected = list(each_with_each(values, 5))
    found = [(first // 10, second // 10) for first, second in joined(tmp_path, values, 5, 10_000_000).pairs()]
    assert found == expected and len(expected) > 10_000
