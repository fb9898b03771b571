"""What img2dataset writes: for each shard a parquet with every URL's status, and the images in a tar (`--output_format
webdataset`), in a folder (files) or in the parquet itself (parquet).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.images.encoded import EXTENSIONS
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

from ..inputs import REMEDY, PathOrUrl, fetched_files, name_of
from ..part import Cursor, Unit
from ..record import Dropped, Record
from .captions import captions_of
from .images import MISSING_IMAGE, Refused, read_inside
from .members import DAMAGE, StrictTar
from .source import Cuttable
from .tar_records import CUT, tar_records
from .webdataset import up_to_first_dot

SUCCESS = "success"
STATUSES = {"failed_to_download": "download failed", "failed_to_resize": "img2dataset could not resize it"}
HTTP = re.compile(r"HTTP Error (\d{3})\b")
NO_TABLE, DAMAGED_TABLE = "the shard's table of statuses is missing", "the shard's table of statuses is damaged"
KINDS = ("tar", "parquet")
ROWS = 64
"""Rows of a parquet read at a time; they may hold the images."""


class Img2datasetSource(Cuttable):
    """img2dataset's output folders, in any of its formats webdataset, files and parquet; key: the shard's and row's
    number as img2dataset gives it; source: the folder's name. A URL that failed is dropped for its status."""

    def __init__(self, paths: list[PathOrUrl]) -> None:
        self._shards = [shard for path in paths for shard in _shards(path)]
        if len({name for _, name, _ in self._shards}) < len(self._shards):
            raise UserError(
                "Two of the folders have shards with equal numbers, and so equal keys: shard them separately."
            )
        self.size = sum(size for *_, size in self._shards)
        self.unused: Counter[str] = Counter()

    def units(self) -> Iterator[Unit]:
        """img2dataset's shards."""
        for number, (folder, name, size) in enumerate(self._shards):
            yield (number,), size + (_files_size(folder / name) if isinstance(folder, Path) else 0)

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        self.position = 0
        self.unused.clear()
        for folder, name, size in self._shards[start[0] if start else 0 : end[0] if end else None]:
            source = folder.resolve().name if isinstance(folder, Path) else name_of(folder)
            with fetched_files(folder, _files(name)) as here:
                for item in self._shard(here.resolve(), name):
                    if self.only is None or item.where in self.only:
                        yield replace(item, source=source)
            self.position += size

    def outline(self) -> Iterator[Record | Dropped]:
        """The same from the tables of statuses alone, without the images' bytes."""
        self.position = 0
        for folder, name, size in self._shards:
            with fetched_files(folder, _files(name)[1:]) as here:
                yield from _listed(here / f"{name}.parquet", name)
            self.position += size

    def _shard(self, folder: Path, name: str) -> Iterator[Record | Dropped]:
        """The records of a shard; without a tar, its images are in the table or are files."""
        listed = _table(folder / f"{name}.parquet", name)
        if (folder / f"{name}.tar").is_file():
            held = list(listed)
            rows = {str(row.get("key")): row for row in held if isinstance(row, dict)}
            yield from self._tar(folder / f"{name}.tar", name, rows)
            listed = iter([*rows.values(), *(row for row in held if isinstance(row, Dropped))])
        yield from (row if isinstance(row, Dropped) else _record(folder, name, row) for row in listed)

    def _tar(self, path: Path, name: str, rows: dict[str, dict[str, Any]]) -> Iterator[Record | Dropped]:
        """The tar's records, with what the table's `rows` say about them; removes those rows from `rows`.

        A tar that cannot be opened is treated as cut short at its start.
        """
        try:
            with StrictTar.open(path, "r:", ignore_zeros=True) as tar:
                for item in tar_records(tar, path.name, up_to_first_dot, self.unused):
                    if item.where == path.name:  # the tar is cut short
                        yield replace(item, where=name)
                        continue
                    yield replace(_joined(item, rows.pop(item.key, {})), where=f"{name}:{item.key}")
        except DAMAGE as error:
            yield Dropped("", CUT, name, str(error))


def _joined(item: Record | Dropped, row: dict[str, Any]) -> Record | Dropped:
    """A record, with what its row says in addition to its own members."""
    if isinstance(item, Dropped):
        return item
    captions = item.captions if any(item.captions) else captions_of(row.get("caption"))
    return replace(item, captions=captions, fields=row | dict(item.fields))


def _table(path: Path, name: str) -> Iterator[dict[str, Any] | Dropped]:
    """The rows of a shard's table, and last what is wrong with it, if anything."""
    if not path.is_file():
        yield Dropped("", NO_TABLE, name, path.name)
        return
    try:
        yield from _rows(path)
    except (pa.ArrowException, OSError) as error:
        yield Dropped("", DAMAGED_TABLE, name, str(error)[:200])


def _shards(folder: PathOrUrl) -> list[tuple[PathOrUrl, str, int]]:
    """The folder, the number and the bytes of each shard in it, in order."""
    if isinstance(folder, Path) and not folder.is_dir():
        raise UserError(f"No folder at {folder}: give the output folder of img2dataset.")
    if isinstance(folder, Path):
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    else:
        sizes = Storage(folder, REMEDY).sizes()
    names = {name for file in sizes for name, dot, kind in [file.partition(".")] if kind in KINDS and name.isdigit()}
    if not names:
        raise UserError(f"{folder} holds no shards like 00000.parquet: give the output folder of img2dataset.")
    return [(folder, name, sum(sizes.get(file, 0) for file in _files(name))) for name in sorted(names)]


def _files(name: str) -> list[str]:
    """The files of a shard, its table of statuses last."""
    return [f"{name}.{kind}" for kind in KINDS]


def _files_size(folder: Path) -> int:
    """Bytes of a shard's images, if they are files."""
    return sum(file.stat().st_size for file in os.scandir(folder)) if folder.is_dir() else 0


def _rows(table: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(table, memory_map=True) as parquet:
        for batch in parquet.iter_batches(ROWS, columns=columns):
            yield from batch.to_pylist()


def _listed(table: Path, name: str) -> Iterator[Record | Dropped]:
    try:
        for row in _rows(table, ["key", "caption", "status", "error_message"]):
            key, status = str(row.get("key")), str(row.get("status"))
            if status == SUCCESS:
                yield Record(key, b"", captions_of(row.get("caption")), where=name)
            else:
                yield Dropped(key, _reason(status, str(row.get("error_message"))), name)
    except (pa.ArrowException, OSError) as error:
        yield Dropped("", "the shard's table of statuses is missing or damaged", name, str(error)[:200])


def _record(folder: Path, name: str, row: dict[str, Any]) -> Record | Dropped:
    """The record of a row whose image is not in a tar."""
    key, status = str(row.get("key")), str(row.get("status"))
    where = f"{name}:{key}"
    if status != SUCCESS:
        detail = f"{row.get('error_message') or status}: {row.get('url')}"
        return Dropped(key, _reason(status, str(row.get("error_message"))), where, detail[:500])
    extensions = [extension for extension in row if extension in EXTENSIONS]
    try:
        image = row.pop(extensions[0]) if extensions else _file(folder, name, key)
    except Refused as refused:
        return Dropped(key, str(refused), where, str(row.get("url"))[:500])
    if not isinstance(image, bytes):
        return Dropped(key, MISSING_IMAGE, where, str(row.get("url"))[:500])
    return Record(key, image, captions_of(row.get("caption")), fields=row, where=where)


def _reason(status: str, message: str) -> str:
    reason = STATUSES.get(status, "img2dataset gives no success")
    code = HTTP.search(message)
    return f"{reason} (HTTP {code[1]})" if code and status == "failed_to_download" else reason


def _file(folder: Path, name: str, key: str) -> bytes:
    for extension in sorted(EXTENSIONS):
        data = read_inside(folder, f"{name}/{key}.{extension}")
        if data is not None:
            return data
    raise Refused(MISSING_IMAGE)
