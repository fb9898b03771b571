"""Tables of links, as LAION, DataComp and COYO have them: the images are downloaded on the way to shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.errors import DataLost

from ..download.client import Client, HeldMemory, Limits
from ..download.failure import NO_LINK, OTHER_CONTENT, UNREACHABLE, Failure
from ..download.prefetch import prefetched
from ..part import Cursor, Unit
from ..record import Dropped, Record
from .captions import captions_of
from .link_table import DAMAGED, Damaged, LinkTable, Row, table_files
from .row_files import malformed
from .source import Cuttable

HASHES = ("sha256", "md5")
"""Columns of a checksum of the image, in hexadecimal or as bytes."""

UNIT_ROWS, IMAGE_BYTES = 1000, 50_000
"""Tables are cut into pieces of that many rows, whose images are taken to have that many bytes each."""

OUTAGE = 500
"""So many links in a row whose hosts cannot be reached mean that this machine has no network."""


@dataclass(frozen=True)
class _Link:
    """The link of a row, and its record, which lacks only the image."""

    url: object
    record: Record


class UrlSource(Cuttable):
    """parquet, CSV, TSV or JSON-lines tables with one link per row, or folders of them; the images are downloaded.
    --image-column (default: the first of url, image_url, img_url, link), --caption-column (default: the first of
    caption, captions, text, title, alt_text, alt), in capitals too; --key-column (default: uid, else FILE-ROW); columns
    sha256 and md5 are checked; source: the table's name. --connections (256), --per-host (8), --timeout (30) and
    --retries (2) limit the requests of each process, --max-mb (32) the size of an image; --allow-loopback, for tests,
    lets links lead to this machine. Example: mvlm-data shard urls laion/*.parquet --longest-side 512 --out shards/laion
    """

    def __init__(
        self,
        paths: list[Path],
        image_column: str = "",
        caption_column: str = "",
        key_column: str = "",
        connections: int = Limits.connections,
        per_host: int = Limits.per_host,
        timeout: float = Limits.timeout,
        retries: int = Limits.retries,
        max_mb: float = Limits.max_bytes / 1e6,
        allow_loopback: bool = False,
    ) -> None:
        self._tables = [LinkTable(path, image_column, caption_column, key_column) for path in table_files(paths)]
        self._limits = Limits(connections, per_host, timeout, retries, int(max_mb * 1e6), allow_loopback)
        self.size = sum(map(len, self._tables))

    def units(self) -> Iterator[Unit]:
        """Where the tables can be cut, and roughly how many bytes of images each piece has."""
        for place, table in enumerate(self._tables):
            for row in range(0, len(table), UNIT_ROWS):
                yield (place, row), min(UNIT_ROWS, len(table) - row) * IMAGE_BYTES

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        """The records from one such place up to another."""
        self.position = unreachable = 0
        for item in prefetched(self._links(start, end), _download, self._limits):
            self.position += 1
            lost = isinstance(item, Dropped) and item.reason in UNREACHABLE
            unreachable = unreachable + 1 if lost else 0
            if unreachable == OUTAGE:
                raise DataLost(
                    f"None of the hosts of {OUTAGE} links up to {item.where} can be reached: see that this machine has "
                    "a network and names are resolved, and run the same command again, which resumes."
                )
            yield item

    def outline(self) -> Iterator[Record | Dropped]:
        """The same records as if every link led to an image; nothing is downloaded."""
        self.position = 0
        for item in self._links():
            self.position += 1
            yield item.record if isinstance(item, _Link) else item

    def _links(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[_Link | Dropped]:
        for place, table in enumerate(self._tables):
            if (place,) < start[:1] or (end is not None and (place, 0) >= end):
                continue
            first = start[1] if start[:1] == (place,) else 0
            last = end[1] if end is not None and end[0] == place else None
            source = table.path.resolve().stem
            try:
                for number, row in table.rows(first, last):
                    where = f"{table.path.name}:{number}"
                    if self.only is None or where in self.only:
                        yield _link(table, number, row, where, source)
            except Damaged as damaged:
                yield Dropped("", DAMAGED, table.path.name, str(damaged), source)


def _link(table: LinkTable, number: int, row: Row | None, where: str, source: str) -> _Link | Dropped:
    if row is None:
        return Dropped("", malformed(table.path), where, source=source)
    given = row.get(table.key) if table.key else f"{source}-{number:09d}"
    if not isinstance(given, str | int) or given == "":
        return Dropped("", "no id", where, source=source)
    fields = {name: value for name, value in row.items() if name != table.caption}
    record = Record(str(given), b"", captions_of(row.get(table.caption)), source, fields, where)
    return _Link(row.get(table.link), record)


async def _download(client: Client, link: _Link | Dropped, memory: HeldMemory) -> Record | Dropped:
    if isinstance(link, Dropped):
        return link
    record = link.record
    if not any(record.captions):
        return record  # it will be dropped for that
    try:
        if not isinstance(link.url, str):
            raise Failure(NO_LINK, "none given")
        image = await client.fetch(link.url.strip(), memory)
        _check(image, record.fields)
    except Failure as failure:
        detail = f"{link.url}: {failure.detail}" if failure.detail else str(link.url)
        return Dropped(record.key, failure.reason, record.where, detail[:500], record.source)
    return Record(record.key, image, record.captions, record.source, record.fields, record.where)


def _check(image: bytes, fields: Any) -> None:
    """Raises `Failure` if the row states another checksum; null or empty states none."""
    for name in HASHES:
        stated = fields.get(name)
        if not stated:
            continue
        found = hashlib.new(name, image, usedforsecurity=False)
        if stated != found.digest() and str(stated).strip().lower() != found.hexdigest():
            raise Failure(OTHER_CONTENT, f"{name} is {found.hexdigest()}")
