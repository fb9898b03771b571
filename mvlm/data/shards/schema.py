"""The shard format: Arrow IPC files and the manifest that names, counts and hashes them.

A corpus is a folder of `NNNNNN.arrow` files and one `manifest.json`:

    {"format": "mvlm-shards", "version": 2, "task": "caption", "rows": R, "captions": C, "image_bytes": Y,
     "fingerprint": "<sha256 over the shards' hashes>",
     "shards": [{"file": "000000.arrow", "rows": r, "bytes": b, "blake3": "<of the file>"}, ...],
     "indexes": [{"bytes": b, "sha256": "<of 000000.index>", "captions": c}, ...],
     "tables": {"meta": [{"bytes": b, "sha256": "<of 000000.meta.parquet>"}, ...], ...}}

The task says which columns the rows have (`SCHEMAS`); if it is left out, it is "caption". Other tasks count no
captions. Opening a corpus reads no shard. The row indexes (`mvlm.data.shards.row_index`) are listed in the shards'
order, and any may be missing (null), as for shards made before there were indexes: they can be added without changing
a shard, and are not part of the fingerprint. Their count of the shard's captions came later, and may be missing. In
version 1 the shards' hashes are "sha256", and they still may be: a manifest without BLAKE3 hashes is of version 1.
Tables (`mvlm.data.shards.tables`) may be missing too, and are not part of the fingerprint either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mvlm.config.places import MANIFEST
from mvlm.data.shards.files import BLAKE3, HASH_NAMES, UNCOUNTED, Shard, Shards
from mvlm.errors import UserError, cannot_read, no_shards

SOURCE, YIELD = "source.json", "yield.json"
"""What a corpus was made from, and how many records sharding read, kept and dropped: files beside the manifest, or
beside the folders of the splits."""

EMPTY_SPLIT = "fell into the split"  # part of the error for a split that gets no records, which `mvlm.api` looks for
FORMAT = "mvlm-shards"
VERSIONS = (1, 2)

CAPTION = "caption"
"""The task of image-caption pairs, which pretraining reads."""


def _columns(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, type_, nullable=False) for name, type_ in types.items()]


_TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))

# key: unique within the corpus. image: the encoded file (JPEG, PNG, ...) as received. source: where the row is from, ""
# if unknown. width and height: in pixels, as decoded. crc32: of the image bytes; the row index has one of all the rest.
_IMAGE = _columns(key=pa.string(), image=pa.binary())
_ORIGIN = _columns(source=pa.string(), width=pa.int32(), height=pa.int32(), crc32=pa.uint32())

OWN_COLUMNS: dict[str, list[pa.Field]] = {
    # The ten answers people gave; the kind of question, as its data set names it.
    "vqa": _columns(question_id=pa.int64(), question=pa.string(), answers=_TEXTS, question_type=pa.string()),
    # Whether the sentence is true of the pair; a sentence is consistent if all rows of its group are right.
    "nlvr2": _columns(sentence=pa.string(), label=pa.bool_(), group=pa.string()),
    "entailment": _columns(sentence=pa.string(), label=pa.string()),  # one of LABELS
    "foils": _columns(caption=pa.string(), foil=pa.string(), swapped=pa.string()),  # true; false; what was exchanged
}
"""For every task but captions, the columns besides those of the image and its origin."""

LABELS = ("entailment", "neutral", "contradiction")

SCHEMA = pa.schema([*_IMAGE, *_columns(captions=_TEXTS), *_ORIGIN])
"""For the task `CAPTION`; a row has one or more captions."""

_RIGHT = _columns(image2=pa.binary(), width2=pa.int32(), height2=pa.int32(), crc32_2=pa.uint32())

SCHEMAS: dict[str, pa.Schema] = {CAPTION: SCHEMA} | {
    task: pa.schema([*_IMAGE, *_ORIGIN, *(_RIGHT if task == "nlvr2" else []), *own])
    for task, own in OWN_COLUMNS.items()
}
"""By task, as the manifest names it. In nlvr2, `image` is the left and `image2` the right one."""

IMAGE_COLUMNS = {"image": ("width", "height", "crc32"), "image2": ("width2", "height2", "crc32_2")}
"""Each image's columns with its width, height and checksum."""


@dataclass(frozen=True)
class Manifest:
    rows: int
    captions: int
    image_bytes: int
    shards: Shards
    task: str = CAPTION  # one of SCHEMAS

    @property
    def fingerprint(self) -> str:
        """Equal exactly for the same rows in the same order."""
        return hashlib.sha256(self.shards.hashes.encode()).hexdigest()

    def to_json(self) -> str:
        version = 2 if any(shard.hashed_by == BLAKE3 for shard in self.shards) else 1
        head = {"format": FORMAT, "version": version, "task": self.task, "rows": self.rows, "captions": self.captions}
        head |= {"image_bytes": self.image_bytes, "fingerprint": self.fingerprint}
        shards = [{"file": s.file, "rows": s.rows, "bytes": s.bytes, s.hashed_by: s.hash} for s in self.shards]
        indexes = [_index_to_json(shard) for shard in self.shards]
        body: dict[str, Any] = {"shards": shards} | ({"indexes": indexes} if any(indexes) else {})
        if names := self.shards.table_names:
            body["tables"] = {name: [_table_to_json(shard.table(name)) for shard in self.shards] for name in names}
        return json.dumps(head | body, indent=1) + "\n"


def _index_to_json(shard: Shard) -> dict[str, Any] | None:
    if not shard.index_bytes:
        return None
    index = {"bytes": shard.index_bytes, "sha256": shard.index_sha256}
    return index if shard.captions == UNCOUNTED else index | {"captions": shard.captions}


def _table_to_json(table: Shard | None) -> dict[str, Any] | None:
    return {"bytes": table.bytes, "sha256": table.hash} if table else None


def corpora_in(folder: Path) -> list[Path]:
    """The folder itself if it holds finished shards, otherwise the folders of splits directly inside it that do."""
    return [folder] if (folder / MANIFEST).is_file() else sorted(each.parent for each in folder.glob(f"*/{MANIFEST}"))


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        UserError: the folder or the manifest is missing, or the manifest is malformed.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise no_shards(folder)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "no finished shard folder; run `mvlm-data shard` to its end."
        if splits := [found.name for found in corpora_in(folder)]:
            hint = f"it holds {', '.join(splits)}; give one of these, such as {folder / splits[-1]}."
        raise UserError(f"{folder} holds no {MANIFEST}: {hint}") from None
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, "copy or shard the corpus again") from None
    return parse_manifest(content, str(path))


def parse_manifest(text: str, path: str) -> Manifest:
    """The manifest that was read from `path`; raises `UserError` if it is malformed."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT or content["version"] not in VERSIONS:
            raise UserError(
                f"{path} is of format {content['format']!r} version {content['version']!r}, "
                f"not {FORMAT!r} version {' or '.join(map(str, VERSIONS))}: shard the corpus again."
            )
        shards = Shards(_shards(content["shards"], content.get("indexes"), content.get("tables", {})))
        task = content.get("task", CAPTION)
        if task not in SCHEMAS:
            raise UserError(f"{path} is of the unknown task {task!r}: update mvlm, or shard the corpus again.")
        manifest = Manifest(content["rows"], content["captions"], content["image_bytes"], shards, task)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a valid manifest ({type(error).__name__}: {error}): shard the corpus again."
        ) from None
    counted = UNCOUNTED in shards.captions or sum(shards.captions) == manifest.captions
    if content.get("fingerprint") != manifest.fingerprint or sum(shards.rows) != manifest.rows or not counted:
        raise UserError(
            f"{path} contradicts itself (rows, captions or fingerprint): it was edited; shard the corpus again."
        )
    return manifest


def _shards(
    shards: list[dict[str, Any]],
    indexes: list[dict[str, Any] | None] | None,
    tables: dict[str, list[dict[str, Any] | None]],
) -> Iterator[Shard]:
    """The shards of a manifest; raises ValueError, KeyError or TypeError if they are malformed."""
    of_shards = zip(*tables.values(), strict=True) if tables else [()] * len(shards)
    for shard, index, beside in zip(shards, indexes or [None] * len(shards), of_shards, strict=True):
        (hashed_by,) = shard.keys() & HASH_NAMES
        found = Shard(shard["file"], shard["rows"], shard["bytes"], shard[hashed_by], hashed_by=hashed_by)
        if index:
            captions = index.get("captions", UNCOUNTED)
            found = replace(found, index_bytes=index["bytes"], index_sha256=index["sha256"], captions=captions)
        named = zip(tables, beside, strict=True)
        yield replace(found, tables=tuple((name, each["bytes"], each["sha256"]) for name, each in named if each))
