"""Hashes that differ in a few bits: sorting finds the pairs that comparing all with all finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.near import WORKING, NearJoin

HASHES = 3


def drawn(count: int, distance: int, seed: int = 0) -> np.ndarray:
    """uint64 [count, HASHES]; one picture in four has another's hash, with up to `distance` + 2 bits flipped."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 1 << 64, (count, HASHES), np.uint64)
    values[:, 2] = np.where(draw.random(count) < 0.5, values[:, 0], values[:, 2])
    for copy in draw.integers(1, count, count // 4):
        flips = draw.choice(64, draw.integers(0, distance + 3), replace=False)
        mask = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=0)
        values[copy, draw.integers(HASHES)] = values[draw.integers(count), 0] ^ mask
    return values


def all_with_all(values: np.ndarray, distance: int, known: int = 0, among: bool = True) -> Iterator[tuple[int, int]]:
    """The pairs of numbers by direct comparison, in the order of the larger one, then of the smaller."""
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
def test_the_pairs_are_those_that_comparing_all_with_all_finds(
    tmp_path: Path, distance: int, known: int, among: bool
) -> None:
    values = drawn(1500, distance)
    expected = list(all_with_all(values, distance, known, among))
    pairs = joined(tmp_path, values, distance).pairs(known, among)
    assert [(first // 10, second // 10) for first, second in pairs] == expected
    assert len(expected) > (100 if among else 20)
    assert pairs.places().tolist() == sorted({10 * place for pair in expected for place in pair})
    second = expected[-1][1]
    assert pairs.earlier(10 * second).tolist() == [10 * first for first, other in expected if other == second]
    assert pairs.earlier(10 * second + 1).tolist() == []
    assert list(tmp_path.iterdir()) == []


def test_the_pairs_do_not_depend_on_the_memory(tmp_path: Path) -> None:
    values = drawn(1000, 5)
    expected = list(joined(tmp_path, values, 5).pairs())
    assert len(expected) > 50
    assert list(joined(tmp_path, values, 5, memory=WORKING * values.size // 7).pairs()) == expected


def test_each_of_many_equal_pictures_is_paired_with_a_bounded_number_of_others(tmp_path: Path) -> None:
    values = np.zeros((3000, HASHES), np.uint64)
    pairs = joined(tmp_path, values, 5).pairs()
    assert len(pairs.places()) == 3000 and len(list(pairs)) < 3000 * 200


def test_no_picture_or_a_single_one_gives_no_pair(tmp_path: Path) -> None:
    assert list(joined(tmp_path, drawn(10, 5)[:0], 5).pairs()) == []
    assert list(joined(tmp_path, drawn(10, 5)[:1], 5).pairs()) == []


@pytest.mark.campaign
def test_the_pairs_of_100_000_are_those_that_comparing_all_with_all_finds(tmp_path: Path) -> None:
    values = drawn(100_000, 5)
    expected = list(all_with_all(values, 5))
    found = [(first // 10, second // 10) for first, second in joined(tmp_path, values, 5, 10_000_000).pairs()]
    assert found == expected and len(expected) > 10_000
