"""What the engines share: items travel in chunks, and results are taken in the order of the chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

CHUNK_ITEMS = 32
CHUNK_BYTES = 4_000_000
"""A chunk of items travels to a worker together and ends at whichever comes first."""

HELD = 3
"""Chunks held per worker at most: one being worked on, one waiting, and one done but not yet taken."""

RETRIES = 2
"""How often a chunk is given to another worker after one died on it."""


def apply(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(item) for item in chunk]


def chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    chunk: list[T] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) >= CHUNK_ITEMS or total >= CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def in_order(
    parts: Iterable[list[T]],
    submit: Callable[[list[T]], Any],
    result: Callable[[list[T], Any], list[R]],
    held: int,
) -> Iterator[tuple[T, R]]:
    """Submit each chunk and yield its items with their results; `held` chunks are under way at most."""
    waiting: deque[tuple[list[T], Any]] = deque()
    for chunk in parts:
        waiting.append((chunk, submit(chunk)))
        if len(waiting) >= held:
            chunk, handle = waiting.popleft()
            yield from zip(chunk, result(chunk, handle), strict=True)
    while waiting:
        chunk, handle = waiting.popleft()
        yield from zip(chunk, result(chunk, handle), strict=True)
