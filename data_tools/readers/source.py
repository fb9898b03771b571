"""The interface of a source of records."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Protocol, runtime_checkable

from ..part import Cursor, Unit
from ..record import Dropped, Record


class Source(Protocol):
    """Records, in the same order each time it is iterated. An image that is missing or refused gives a `Dropped`.

    `position` out of `size` bytes of input have been read, for the progress bar. `only`, if set, holds the records to
    give, by their `where`: the images of others are not read.
    """

    size: int
    position: int = 0
    only: Container[str] | None = None

    def __iter__(self) -> Iterator[Record | Dropped]: ...


@runtime_checkable
class Cuttable(Source, Protocol):
    """A source that can be cut into parts; any other is one part."""

    def __iter__(self) -> Iterator[Record | Dropped]:
        return self.read()

    def units(self) -> Iterator[Unit]:
        """The places where it can be cut, in order, and roughly how many bytes of images each piece has."""
        ...

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        """The records from one such place up to another."""
        ...
