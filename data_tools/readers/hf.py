"""Hugging Face data sets: what `save_to_disk` wrote (a data set or a dict of them), and parquet files, with images in a
column of {bytes, path}, of bytes, or of paths. Only Arrow is needed to read them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.shards.forms import image_columns, is_parquet
from mvlm.errors import UserError

from ..inputs import PathOrUrl, expanded, fetched, name_of, size_of
from ..part import Cursor, Unit
from ..record import Dropped, Record
from .captions import captions_of
from .hf_places import Places, placed
from .images import MISSING_IMAGE, Refused, read_inside
from .row_files import undecided
from .source import Cuttable
from .table import IMAGE_COLUMNS

CAPTION_COLUMNS = ("captions", "caption", "sentences", "text", "alt_text", "txt")
"""Names looked for, in this order, if --caption-column is not given."""

ROWS = 64

MOST_NAMED = 20
"""Splits listed in a message at most: if files are not named as on the hub, each counts as a split."""


class HfSource(Cuttable):
    """folders of save_to_disk, parquet files or folders of them; --subset: splits, by name; --image-column,
    --caption-column (texts or lists of them; default: found by name and type); --key-column (default: FILE-ROW);
    --in-place: of Arrow files, and of parquet that is compressed by snappy or not at all; source: the path's name"""

    def __init__(
        self,
        paths: list[PathOrUrl],
        subset: str = "",
        image_column: str = "",
        caption_column: str = "",
        key_column: str = "",
        in_place: bool = False,
    ) -> None:
        found = [(file, _source(path)) for path in paths for file in _files(path, subset)]
        self._files, self._sources = [file for file, _ in found], [source for _, source in found]
        self._sizes = [size_of(file) for file in self._files]
        self._image, self._caption, self._key = image_column, caption_column, key_column
        # Files of different splits may have the same name.
        counts = Counter(map(name_of, self._files))
        self._names = [
            "/".join(str(file).split("/")[-2:]) if counts[name_of(file)] > 1 else name_of(file) for file in self._files
        ]
        if len(set(self._names)) < len(self._names):
            raise UserError(
                "Two of the paths hold files with the same name, and so the same keys: shard them separately."
            )
        for file in self._files:
            if isinstance(file, Path):
                self._columns(_schema(file), file)
        if in_place and (urls := [file for file in self._files if not isinstance(file, Path)]):
            raise UserError(f"{urls[0]} is at a URL, so that its images cannot stay in it: leave out --in-place.")
        self._in_place = in_place
        self.size = sum(self._sizes)

    def units(self) -> Iterator[Unit]:
        """The row groups of parquet files; other files as a whole."""
        for place, file in enumerate(self._files):
            for group, size in enumerate(_groups(file) if isinstance(file, Path) else [self._sizes[place]]):
                yield (place, group), size

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        self.position = 0
        for place, (file, name, source) in enumerate(zip(self._files, self._names, self._sources, strict=True)):
            first = start[1] if start[:1] == (place,) else 0
            last = end[1] if end and end[0] == place else None
            if (place,) < start[:1] or (end is not None and (place, first) >= end):
                continue
            done = self.position + self._sizes[place]
            try:
                with fetched(file) as here:
                    places = self._places(here, first)
                    for number, batch in _batches(here, first, last):
                        records = self._records(batch, here, name, number, places)
                        yield from (replace(record, source=source) for record in records)
                        self.position = min(done, self.position + batch.nbytes)
            except (pa.ArrowException, OSError) as error:
                yield Dropped("", "file is cut short or damaged from here on", name, str(error)[:200], source)
            self.position = done

    def _places(self, file: Path, first_group: int) -> Places | None:
        if not self._in_place:
            return None
        return placed(file, self._columns(_schema(file), file)[0], first_group)

    def _columns(self, schema: pa.Schema, file: Path) -> tuple[str, str]:
        """The columns of the image and of the captions."""
        images = image_columns(schema) or [name for name in IMAGE_COLUMNS if name in schema.names][:1]
        image = self._image or (images[0] if len(images) == 1 else "")
        caption = self._caption or next((name for name in CAPTION_COLUMNS if name in schema.names), "")
        for column, option in ((image, "--image-column"), (caption, "--caption-column")):
            if column not in schema.names:
                raise undecided(file, schema.names, option)
        if image == caption:
            raise UserError(
                f"{file} cannot have its images and its captions in {image!r}: say which with --image-column."
            )
        if self._key and self._key not in schema.names:
            raise UserError(f"{file} has no column {self._key!r}: give another --key-column.")
        return image, caption

    def _records(
        self, batch: pa.RecordBatch, file: Path, name: str, start: int, places: Places | None
    ) -> Iterator[Record | Dropped]:
        image_column, caption_column = self._columns(batch.schema, file)
        said = {field.name for field in batch.schema if not _holds_bytes(field.type)}
        for number in range(len(batch)):
            where = f"{name}:{start + number}"
            if self.only is not None and where not in self.only:
                continue
            row = batch.slice(number, 1).to_pylist()[0]
            key = row.get(self._key) if self._key else f"{PurePath(name).with_suffix('')}-{start + number:08d}"
            if not isinstance(key, str | int):
                yield Dropped("", "no id", where)
                continue
            captions = row.pop(caption_column)
            try:
                image = _image_bytes(row.pop(image_column), file.parent.resolve())
            except Refused as refused:
                yield Dropped(str(key), str(refused), where)
                continue
            fields = {column: value for column, value in row.items() if column in said}
            place = places(image) if places else None
            yield Record(str(key), image, captions_of(captions), fields=fields, where=where, place=place)


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type have bytes in them, as further images do."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in is_bytes) or any(
        _holds_bytes(kind.field(number).type) for number in range(kind.num_fields)
    )


def _image_bytes(value: Any, folder: Path) -> bytes:
    """The bytes in the column, or of the file that it names, in the folder of the data set."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        value = read_inside(folder, value)
    if not isinstance(value, bytes):
        raise Refused(MISSING_IMAGE)
    return value


def _source(path: PathOrUrl) -> str:
    return path.resolve().stem if isinstance(path, Path) else PurePath(name_of(path)).stem


def _files(path: PathOrUrl, subset: str) -> Sequence[PathOrUrl]:
    """The files of a data set that hold the splits asked for, in order."""
    if isinstance(path, str) and not path.lower().endswith(".parquet"):
        starts = [f"{split}-" for split in subset.split(",") if split] or [""]
        return expanded([f"{path.rstrip('/')}/**/{start}*.parquet" for start in starts])
    if isinstance(path, str) or path.is_file() or (path / "state.json").is_file():
        if subset:
            raise UserError(
                f"{path} has no splits to choose among: leave out --subset, or give a folder that has some."
            )
        return [path] if isinstance(path, str) or path.is_file() else _saved(path)
    if not path.is_dir():
        raise UserError(f"No file or folder at {path}: check the path.")
    chosen = set(filter(None, subset.split(",")))
    splits = _json(path / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        _check_splits(path, chosen, map(str, splits))
        folders = [path / PurePath(str(split)).name for split in splits if not chosen or split in chosen]
        return [file for folder in folders for file in _saved(folder)]
    parquet = sorted(filter(is_parquet, path.rglob("*")))
    if not parquet:
        raise UserError(
            f"{path} holds neither state.json nor parquet files: check it, or shard the metadata.csv or "
            "metadata.jsonl of an image folder as a table."
        )
    _check_splits(path, chosen, map(_split, parquet))
    return [file for file in parquet if not chosen or _split(file) in chosen]


def _split(file: Path) -> str:
    """The hub's files are called SPLIT-00000-of-00001.parquet."""
    return file.name.partition("-")[0]


def _check_splits(path: Path, chosen: set[str], splits: Iterable[str]) -> None:
    known = sorted(set(splits))
    if unknown := chosen - set(known):
        raise UserError(f"{path} has no split {min(unknown)!r}: give --subset one of {', '.join(known[:MOST_NAMED])}.")


def _saved(folder: Path) -> list[Path]:
    entries = _json(folder / "state.json").get("_data_files") or []
    files = [folder / PurePath(str(entry["filename"])).name for entry in entries]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though state.json names it: copy the data set again.")
    return files


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy the data set again.") from None
    return content if isinstance(content, dict) else {}


def _schema(file: Path) -> pa.Schema:
    try:
        if is_parquet(file):
            return pq.read_schema(file, memory_map=True)
        with pa.memory_map(str(file)) as mapped, _open_arrow(mapped) as reader:
            return reader.schema
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Arrow or parquet file ({error}): copy it again.") from None


def _open_arrow(mapped: pa.NativeFile) -> Any:
    """`datasets` writes Arrow's stream format; files from elsewhere may be in its file format."""
    try:
        return pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_file(mapped)


def _groups(file: Path) -> Iterator[int]:
    """Bytes of each row group of a parquet file, or of any other file as a whole."""
    if not is_parquet(file):
        yield file.stat().st_size
        return
    about = pq.read_metadata(file, memory_map=True)
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        yield sum(group.column(column).total_compressed_size for column in range(group.num_columns))


def _batches(file: Path, first: int = 0, last: int | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of the row groups from `first` to before `last`, each with the number of its first row."""
    row = 0
    if is_parquet(file):
        with pq.ParquetFile(file, memory_map=True) as parquet:
            groups = range(parquet.num_row_groups)
            row = sum(parquet.metadata.row_group(group).num_rows for group in groups[:first])
            for batch in parquet.iter_batches(ROWS, row_groups=list(groups[first:last])):
                yield row, batch
                row += len(batch)
        return
    with pa.memory_map(str(file)) as mapped, _open_arrow(mapped) as reader:
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            yield row, batch
            row += len(batch)
