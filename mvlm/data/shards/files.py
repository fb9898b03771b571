"""The files of a corpus: shards, each with its row index and its tables, their lengths and their hashes."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

HASH_NAMES = SHA256, BLAKE3 = "sha256", "blake3"
"""How a shard is hashed: BLAKE3 takes a third of the time of SHA-256, which version 1 used."""

UNCOUNTED = -1
"""The number of captions of a shard if the manifest does not give it."""


@dataclass(frozen=True, slots=True)
class Shard:
    file: str
    rows: int
    bytes: int
    hash: str  # hexadecimal, of the file
    index_bytes: int = 0  # of its row index; 0: it has none
    index_sha256: str = ""
    captions: int = UNCOUNTED
    hashed_by: str = BLAKE3
    tables: tuple[tuple[str, int, str], ...] = ()  # name, bytes and SHA-256 of each table beside it

    @property
    def index(self) -> Shard | None:
        """The file of its row index, which is stored, fetched and checked like a shard."""
        if not self.index_bytes:
            return None
        return Shard(index_file(self.file), self.rows, self.index_bytes, self.index_sha256, hashed_by=SHA256)

    def table(self, name: str) -> Shard | None:
        """The file of a table, likewise; None if the shard has none of that name."""
        found = next((table for table in self.tables if table[0] == name), None)
        return found and Shard(table_file(self.file, name), self.rows, *found[1:], hashed_by=SHA256)

    @property
    def trained_on(self) -> list[Shard]:
        """The files needed to read its rows, without the tables."""
        return [self, self.index] if self.index else [self]

    @property
    def files(self) -> list[Shard]:
        return self.trained_on + [table for name, *_ in self.tables if (table := self.table(name))]


def table_file(shard_file: str, name: str) -> str:
    """The name of a table's file."""
    return f"{shard_file.removesuffix('.arrow')}.{name}.parquet"


def index_file(shard_file: str) -> str:
    """The name of a shard's row index."""
    return shard_file.removesuffix(".arrow") + ".index"


def index_again(folder: str | Path) -> str:
    """What to do about a row index that is damaged or missing, as the end of a sentence."""
    return f"make it again with `mvlm-data row-index {folder}`"


class Shards(Sequence[Shard]):
    """Shards by number, in a tenth of the memory of as many objects, since every loader process holds them.

    Attributes:
        rows: of each shard.
        captions: of each shard, or `UNCOUNTED`.
    """

    def __init__(self, shards: Iterable[Shard]):
        """Raises ValueError or TypeError if a shard has values that none can have."""
        self._files, self._file_ends = bytearray(), array("q")
        self.rows, self._bytes, self._hashes = array("q"), array("q"), bytearray()
        self._index_bytes, self._index_hashes, self.captions = array("q"), bytearray(), array("q")
        self._hashed_by = bytearray()
        self._tables: dict[str, tuple[array[int], bytearray]] = {}  # by name: sizes and hashes, one per shard
        for number, shard in enumerate(shards):
            if "/" in shard.file or shard.file in ("", ".", ".."):
                raise ValueError(f"{shard.file!r} is outside its folder")
            self._files += shard.file.encode()
            self._file_ends.append(len(self._files))
            self.rows.append(shard.rows)
            self._bytes.append(shard.bytes)
            self._hashes += bytes.fromhex(shard.hash)
            self._hashed_by.append(HASH_NAMES.index(shard.hashed_by))
            self._index_bytes.append(shard.index_bytes)
            self._index_hashes += bytes.fromhex(shard.index_sha256) if shard.index_bytes else bytes(32)
            self.captions.append(shard.captions)
            for name, size, sha256 in shard.tables:
                if not re.fullmatch("[a-z]+", name):
                    raise ValueError(f"{name!r} is not the name of a table")
                sizes, hashes = self._tables.setdefault(name, (array("q"), bytearray()))
                sizes.extend([0] * (number - len(sizes)))
                sizes.append(size)
                hashes.extend(bytes(32 * number - len(hashes)) + bytes.fromhex(sha256))
        for sizes, hashes in self._tables.values():
            sizes.extend([0] * (len(self) - len(sizes)))
            hashes.extend(bytes(32 * len(self) - len(hashes)))
        if not len(self._hashes) == len(self._index_hashes) == 32 * len(self):
            raise ValueError("a hash has not 32 bytes")
        if not any(self._index_bytes):
            self._index_bytes, self._index_hashes = array("q"), bytearray()

    @property
    def hashes(self) -> str:
        """The hashes of all shards, joined."""
        return self._hashes.hex()

    @property
    def table_names(self) -> list[str]:
        return list(self._tables)

    @property
    def unindexed(self) -> int:
        """The number of shards without a row index."""
        return len(self) - sum(map(bool, self._index_bytes))

    def file(self, number: int) -> str:
        """The name of a shard's file."""
        start = self._file_ends[number - 1] if number else 0
        return self._files[start : self._file_ends[number]].decode()

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # compared, but never hashed

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        its_hash = slice(32 * number, 32 * number + 32)
        shard = self.file(number), self.rows[number], self._bytes[number], self._hashes[its_hash].hex()
        index: tuple[int, str] = (0, "")
        if self._index_bytes and self._index_bytes[number]:
            index = self._index_bytes[number], self._index_hashes[its_hash].hex()
        tables = tuple(
            (name, sizes[number], hashes[its_hash].hex())
            for name, (sizes, hashes) in self._tables.items()
            if sizes[number]
        )
        return Shard(*shard, *index, self.captions[number], HASH_NAMES[self._hashed_by[number]], tables)
