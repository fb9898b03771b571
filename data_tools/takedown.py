"""Taking rows down: every reader skips rows with a listed key, URL or hash from then on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvlm.data.images.encoded import ChangedImage
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.in_place import resolved
from mvlm.data.shards.location import ShardLocation, open_location
from mvlm.data.shards.schema import IMAGE_COLUMNS
from mvlm.data.shards.tables import columns_of, unknown_column
from mvlm.data.shards.takedown import TAKEDOWN, parse_takedown, takedown_json
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

COLUMNS = ("key", "url", "URL", "sha256", "md5", "uid")
"""Columns whose values a line of a list may name, if the corpus has them."""

REMEDY = "give a folder or a URL that can be written to"

SHA256 = re.compile("[0-9a-fA-F]{64}")

HASHES = ("sha256", "md5")
"""Columns of hexadecimal digits, in either case."""


@dataclass(frozen=True)
class TakenDown:
    """The outcome: rows that are taken down now, how many of them were not before, and lines that name no row."""

    rows: int
    new: int
    unmatched: frozenset[str]


def read_list(paths: Sequence[Path]) -> set[str]:
    """The lines of lists, without the empty ones.

    Raises:
        UserError: one cannot be read, or they name nothing.
    """
    lines: set[str] = set()
    for path in paths:
        try:
            lines |= {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()}
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): give a text file in UTF-8 with one key, URL or hash per line."
            ) from None
    if not (lines := lines - {""}):
        raise UserError(f"{', '.join(map(str, paths))} names nothing: give one key, URL or hash per line.")
    return lines


def take_down(folder: str | Path, lines: set[str], by: Sequence[str] = ()) -> TakenDown:
    """Add the rows that the lines name to the list beside the corpus's manifest; the shards stay as they are.

    Args:
        folder: of shards, or a URL.
        by: the columns that may name a row; none = those of `COLUMNS` that exist, and the SHA-256 of the image.

    Raises:
        UserError: the corpus is damaged, or no shard has one of the columns.
    """
    location, named, rows_of = open_location(folder, Cache()), _Named(lines, by), dict[str, set[int]]()
    for number, shard in enumerate(location.manifest.shards):
        if rows := named.rows(location, number):
            rows_of.setdefault(shard.hash, set()).update(rows)
    if missing := set(by) - named.columns:
        raise unknown_column(min(missing), location.folder, named.columns)
    # Read only now: looking at all images takes hours, in which another list may have been taken down.
    storage = Storage(str(folder) if location.cached else str(Path(folder).absolute()), REMEDY)
    listed = parse_takedown(storage.read(TAKEDOWN), f"{location.folder}/{TAKEDOWN}")
    before = sum(map(len, listed.values()))
    listed |= {shard: sorted(more.union(listed.get(shard, ()))) for shard, more in rows_of.items()}
    storage.write(TAKEDOWN, takedown_json(listed).encode())
    rows_down = sum(map(len, listed.values()))
    return TakenDown(rows_down, rows_down - before, named.unmatched())


class _Named:
    """The rows that the lines of a list name, by their columns and, if none is given, by their images' SHA-256.

    Attributes:
        columns: those of the shards looked at so far.
    """

    def __init__(self, lines: set[str], by: Sequence[str]) -> None:
        self._lines, self._by = lines, by
        self._hashes = {line.lower() for line in lines if SHA256.fullmatch(line)} if not by else set[str]()
        self._values = pa.array(sorted(lines), pa.string())
        self._lowered = pa.array(sorted({line.lower() for line in lines}), pa.string())
        self._found, self._found_hashes = set[str](), set[str]()
        self.columns: set[str] = set()

    def rows(self, location: ShardLocation, number: int) -> list[int]:
        """The rows of a shard that are named."""
        table, names = columns_of(location, number, self._by or COLUMNS)
        self.columns |= set(names)
        named = np.zeros(location.manifest.shards[number].rows, bool)
        for name in filter(None, table.schema.names):
            column, is_hash = table[name].cast(pa.string()), name in HASHES
            column = pc.utf8_lower(column) if is_hash else column
            holds = pc.is_in(column, self._lowered if is_hash else self._values)
            (self._found_hashes if is_hash else self._found).update(pc.unique(column.filter(holds)).to_pylist())
            named |= holds.to_numpy()
        if self._hashes and ("sha256" not in names or table["sha256"].null_count):
            for row, sha256 in _hashed(location, number):
                if sha256 in self._hashes:
                    named[row] = True
                    self._found_hashes.add(sha256)
        return np.flatnonzero(named).tolist()

    def unmatched(self) -> frozenset[str]:
        """Lines that name no row of any shard looked at."""
        return frozenset(line for line in self._lines - self._found if line.lower() not in self._found_hashes)


def _hashed(location: ShardLocation, number: int) -> Iterator[tuple[int, str]]:
    """The SHA-256 of each image of a shard, with its row; raises `UserError` if the shard is damaged."""
    first = 0
    try:
        file = location.map(number, location.manifest.shards[number])
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(file.data)))
        for at in range(reader.num_record_batches):
            batch = reader.get_batch(at)
            batch.validate(full=True)
            for name in filter(batch.schema.names.__contains__, IMAGE_COLUMNS):
                for row, image in enumerate(batch[name], first):
                    with suppress(ChangedImage):  # no reader can use it either
                        yield row, hashlib.sha256(resolved(image.as_buffer())).hexdigest()
            first += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{location.name(number)} cannot be read ({error}): copy or shard it again.") from None
