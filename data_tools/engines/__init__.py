"""Where the work on records runs: the processes of this machine, or a Ray cluster. Both keep the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar, cast

from .local import ordered_map
from .ray import connected, ray_map

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("local", "ray")


class Map(Protocol):
    """Yields `(item, function(item))` in the order of `items`, holding few of them; `size` gives an item's bytes."""

    def __call__(
        self, function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int]
    ) -> Iterator[tuple[T, R]]: ...


@contextmanager
def engine(name: str, workers: int, address: str | None = None) -> Iterator[Map]:
    """Yield the map of one of `ENGINES`. `address` is a running Ray's; without it, one is started on this machine.

    Raises:
        UserError: there is no Ray at that address.
    """
    if name == "local":
        yield cast(Map, partial(ordered_map, workers=workers))
        return
    with connected(address, workers):
        yield cast(Map, partial(ray_map, workers=workers))
