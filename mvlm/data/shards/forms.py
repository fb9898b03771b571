"""Recognises corpora in the forms that other programs write: which source of `data_tools shard` reads one, and whether
its images can stay where they are."""

from __future__ import annotations

import codecs
import itertools
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.images.encoded import EXTENSIONS
from mvlm.data.shards.schema import MANIFEST, corpora_in
from mvlm.errors import UserError


@dataclass(frozen=True)
class CorpusForm:
    """How to read a corpus.

    Attributes:
        source: of `data_tools shard`.
        paths: to give to it.
        stays: whether images can be read where they are, so that shards need only refer to them.
        files: whose lengths and times change when the corpus does.
    """

    source: str
    paths: tuple[Path, ...]
    stays: bool
    files: tuple[Path, ...]


IN_PLACE = ("UNCOMPRESSED", "SNAPPY")
"""Parquet compressions that leave images as they are: Snappy does so with whatever it cannot shorten."""

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")

METADATA = ("metadata.csv", "metadata.jsonl")
"""Names of the table in Hugging Face's image folders."""

JSON = (".jsonl", ".ndjson", ".json")
FIRST = 1 << 16
"""Bytes of a table read to recognise it."""

_PICTURE = re.compile(r"(image|img|file|path)\w*")
_CAPTION = re.compile(r"\w*(caption|text|comment|title|description|sentence)\w*")

TEXTS = 100
"""Text files looked at to find one with a picture."""

_OF_SHARDS = re.compile(r"[^.]+\.[a-z]+\.parquet")
"""Names of tables beside shards, which are not a corpus."""


def recognise(place: str | Path) -> CorpusForm | None:
    """The form of what is at a path or matches a pattern; None if no source reads it.

    Raises:
        UserError: nothing is there.
    """
    path = Path(place)
    if has_magic(str(place)) and not path.exists():
        found = sorted(map(Path, glob(str(place), recursive=True)))
        forms = [_of_file(found[0])] if found and found[0].is_file() else []
        return _several(forms[0], found) if forms and forms[0] else None
    if not path.exists():
        raise UserError(f"Nothing is at {path}: give a folder of pictures, an archive, a table or shards.")
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _several(first: CorpusForm, found: Sequence[Path]) -> CorpusForm:
    return CorpusForm(first.source, tuple(found), first.stays, tuple(found))


def _of_folder(path: Path) -> CorpusForm | None:
    def form(source: str, files: Sequence[Path] = (), stays: bool = False) -> CorpusForm:
        return CorpusForm(source, (path,), stays, tuple(files))

    if corpora_in(path):
        return None  # shards
    if (path / "captions.jsonl").is_file():
        return form("folder")
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        files = sorted(path.rglob("*.arrow"))
        return form("hf", files, bool(files))
    if any(path.glob("*_stats.json")):
        return form("img2dataset")
    if tars := sorted(path.glob("*.tar")):
        first = _of_file(tars[0])
        return _several(first, tars) if first and first.source == "webdataset" else None
    if tables := sorted(file for file in path.rglob("*") if is_parquet(file) and not _OF_SHARDS.fullmatch(file.name)):
        return form("hf", tables, _is_plain(tables[0]))
    if not _has_pairs(path) and (table := _table_in(path)):
        return CorpusForm("table", (table,), False, (table,))
    texts = any(path.rglob("*.txt"))
    if texts and any(file.suffix[1:].lower() in EXTENSIONS for file in path.rglob("*")):
        return form("side_by_side")
    return None


def _table_in(path: Path) -> Path | None:
    """The table of pictures in a folder: `metadata`, as Hugging Face calls it, or else the only one."""
    tables = [file for file in sorted(path.iterdir()) if file.is_file() and _is_table(file) and _is_of_pictures(file)]
    named = [file for file in tables if file.name in METADATA]
    if named:
        return named[0]
    return tables[0] if len(tables) == 1 else None


def _is_table(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _is_json_list(path)
    if suffix == ".txt":
        return _is_of_pictures(path)
    return suffix in TABLES


def _is_of_pictures(path: Path) -> bool:
    """Whether a table's first row names columns of pictures and captions, as in Flickr8k's captions.txt on Kaggle."""
    with path.open("rb") as file:
        text = file.read(FIRST).decode("utf-8-sig", "replace")
    names = _json_names(text) if path.suffix.lower() in JSON else re.split(r"[,;|\t]", text.partition("\n")[0])
    bare = [name.strip(' \r\n"').lower() for name in names]
    return any(_PICTURE.fullmatch(name) for name in bare) and any(_CAPTION.fullmatch(name) for name in bare)


def _json_names(text: str) -> list[str]:
    """The keys of the first object whose values are texts or lists: a run's metrics have numbers under such names."""
    try:
        row = json.JSONDecoder().raw_decode(text.lstrip().removeprefix("[").lstrip())[0]
    except (ValueError, RecursionError):
        return []
    return [name for name, value in row.items() if isinstance(value, str | list)] if isinstance(row, dict) else []


def _has_pairs(path: Path) -> bool:
    """Whether one of the first texts found has a picture beside it, unlike a licence or a list."""
    texts = itertools.islice(path.rglob("*.txt"), TEXTS)
    return any(text.with_suffix(f".{kind}").exists() for text in texts for kind in EXTENSIONS)


def _of_file(path: Path) -> CorpusForm | None:
    if _is_table(path):
        return CorpusForm("table", (path,), False, (path,))
    if is_parquet(path):
        return CorpusForm("hf", (path,), _is_plain(path), (path,))
    if path.suffix.lower() == ".arrow":
        return None if (path.parent / MANIFEST).is_file() else CorpusForm("hf", (path,), True, (path,))
    for mode, stays in (("r:", True), ("r:*", False)):
        try:
            with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
                first = [member.name for member, _ in zip(archive, range(1000), strict=False)]
        except (tarfile.TarError, OSError, EOFError):
            continue
        if any(Path(name).name == "captions.jsonl" for name in first):
            return CorpusForm("folder", (path,), False, (path,))
        return CorpusForm("webdataset", (path,), stays, (path,))
    return None


def _is_json_list(path: Path) -> bool:
    """Whether it is a list, like annotations of ALBEF, BLIP and LAVIS; objects, like COCO's, have other sources."""
    with path.open("rb") as file:
        return file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def is_parquet(path: Path) -> bool:
    """Whether its extension says so, in upper or lower case."""
    return path.suffix.lower() == ".parquet"


def _is_plain(parquet: Path) -> bool:
    """Whether a Parquet file itself holds images, and no compression has changed them."""
    try:
        about = pq.read_metadata(parquet)
        images = image_columns(about.schema.to_arrow_schema())
    except (pa.ArrowException, OSError):
        return False
    columns = [about.row_group(0).column(number) for number in range(about.num_columns)] if about.num_row_groups else []
    held = {path for name in images for path in (name, f"{name}.bytes")}
    return any(column.path_in_schema in held and column.compression in IN_PLACE for column in columns)


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold images: structs of {bytes, path} as `datasets` writes them, else bytes."""
    structs = [field for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    plain = [field for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)]
    return [field.name for field in structs or plain]
