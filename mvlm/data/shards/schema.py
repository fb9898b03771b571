"""The shard format: Arrow IPC files and the manifest that names, counts and hashes them.

A corpus is a folder of `NNNNNN.arrow` files and one `manifest.json`:

    {"format": "mvlm-shards", "version": 2, "task": "caption", "rows": R, "captions": C, "image_bytes": Y,
     "fingerprint": "<sha256 over the shards' hashes>",
     "shards": [{"file": "000000.arrow", "rows": r, "bytes": b, "blake3": "<of the file>"}, ...],
     "indexes": [{"bytes": b, "sha256": "<of 000000.index>", "captions": c}, ...],
     "tables": {"meta": [{"bytes": b, "sha256": "<of 000000.meta.parquet>"}, ...], ...}}

The task says which columns the rows have (`SCHEMAS`) and is "caption" where it is left out; other tasks count no
captions. Nothing but the manifest is read when a corpus is opened. Of the row indexes (`mvlm.data.shards.row_index`),
which stand in the shards' order, some or all may be missing (null), as of shards that were made before there were any:
they can be added without a change to a shard, and are no part of the fingerprint. Their count of the shard's captions
is younger than they are, and may be missing. In version 1 the shards' hashes are "sha256", and they still may be: a
manifest without a BLAKE3 is of version 1. Tables (`mvlm.data.shards.tables`) may be missing too, and are no part of the
fingerprint either.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from mvlm.errors import UserError

MANIFEST = "manifest.json"
FORMAT = "mvlm-shards"
VERSIONS = (1, 2)

HASH_NAMES = SHA256, BLAKE3 = "sha256", "blake3"
"""What a shard is hashed by: BLAKE3 takes a third of the time of SHA-256, by which shards of version 1 were hashed."""

UNCOUNTED = -1
"""The captions of a shard whose manifest does not say."""

CAPTION = "caption"
"""The task of image-caption pairs, which pretraining reads."""


def _columns(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, type_, nullable=False) for name, type_ in types.items()]


_TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))

# key: unique within the corpus. image: an encoded file (JPEG, PNG, ...) as it came. source: where the row comes from,
# "" if unknown. width and height: pixels, as decoded. crc32: of the image bytes; that of all else is in the row index.
_IMAGE = _columns(key=pa.string(), image=pa.binary())
_ORIGIN = _columns(source=pa.string(), width=pa.int32(), height=pa.int32(), crc32=pa.uint32())

OWN_COLUMNS: dict[str, list[pa.Field]] = {
    # The ten answers people gave; the kind of question, as its data set names it.
    "vqa": _columns(question_id=pa.int64(), question=pa.string(), answers=_TEXTS, question_type=pa.string()),
    # Whether the sentence is true of the pair; sentences are consistent where all rows of their group are right.
    "nlvr2": _columns(sentence=pa.string(), label=pa.bool_(), group=pa.string()),
    "entailment": _columns(sentence=pa.string(), label=pa.string()),  # one of LABELS
    "foils": _columns(caption=pa.string(), foil=pa.string(), swapped=pa.string()),  # true, false; what was exchanged
}
"""Of every task but captions: the columns beside the image's and its origin's."""

LABELS = ("entailment", "neutral", "contradiction")

SCHEMA = pa.schema([*_IMAGE, *_columns(captions=_TEXTS), *_ORIGIN])
"""Of the task `CAPTION`; a row has one caption or more."""

_RIGHT = _columns(image2=pa.binary(), width2=pa.int32(), height2=pa.int32(), crc32_2=pa.uint32())

SCHEMAS: dict[str, pa.Schema] = {CAPTION: SCHEMA} | {
    task: pa.schema([*_IMAGE, *_ORIGIN, *(_RIGHT if task == "nlvr2" else []), *own])
    for task, own in OWN_COLUMNS.items()
}
"""By task, as the manifest names it. Of nlvr2, `image` is the left and `image2` the right one."""

IMAGE_COLUMNS = {"image": ("width", "height", "crc32"), "image2": ("width2", "height2", "crc32_2")}
"""Each image's columns with its width, height and checksum."""


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
    tables: tuple[tuple[str, int, str], ...] = ()  # of each table beside it: its name, bytes and SHA-256

    @property
    def index(self) -> Shard | None:
        """The file of its row index, which is stored, fetched and checked like a shard."""
        if not self.index_bytes:
            return None
        return Shard(index_file(self.file), self.rows, self.index_bytes, self.index_sha256, hashed_by=SHA256)

    def table(self, name: str) -> Shard | None:
        """The file of a table, likewise; None where the shard has none of that name."""
        found = next((table for table in self.tables if table[0] == name), None)
        return found and Shard(table_file(self.file, name), self.rows, *found[1:], hashed_by=SHA256)

    @property
    def trained_on(self) -> list[Shard]:
        """The files that reading its rows takes, without the tables."""
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
    """Shards by number in a tenth of the memory of as many objects: every loader process holds them.

    Attributes:
        rows: of each.
        captions: of each, or `UNCOUNTED`.
    """

    def __init__(self, shards: Iterable[Shard]):
        """Raises ValueError or TypeError where the values of one are none that a shard can have."""
        self._files, self._file_ends = bytearray(), array("q")
        self.rows, self._bytes, self._hashes = array("q"), array("q"), bytearray()
        self._index_bytes, self._index_hashes, self.captions = array("q"), bytearray(), array("q")
        self._hashed_by = bytearray()
        self._tables: dict[str, tuple[array[int], bytearray]] = {}  # by name: bytes, and hashes, of each shard's
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
                    raise ValueError(f"{name!r} is no name of a table")
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
        """All hashes of shards in a row."""
        return self._hashes.hex()

    @property
    def table_names(self) -> list[str]:
        return list(self._tables)

    @property
    def unindexed(self) -> int:
        """How many have no row index."""
        return len(self) - sum(map(bool, self._index_bytes))

    def file(self, number: int) -> str:
        """Its name."""
        start = self._file_ends[number - 1] if number else 0
        return self._files[start : self._file_ends[number]].decode()

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # it is compared, never looked up

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...

    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        of_it = slice(32 * number, 32 * number + 32)
        shard = self.file(number), self.rows[number], self._bytes[number], self._hashes[of_it].hex()
        index: tuple[int, str] = (0, "")
        if self._index_bytes and self._index_bytes[number]:
            index = self._index_bytes[number], self._index_hashes[of_it].hex()
        tables = tuple(
            (name, sizes[number], hashes[of_it].hex())
            for name, (sizes, hashes) in self._tables.items()
            if sizes[number]
        )
        return Shard(*shard, *index, self.captions[number], HASH_NAMES[self._hashed_by[number]], tables)


@dataclass(frozen=True)
class Manifest:
    rows: int
    captions: int
    image_bytes: int
    shards: Shards
    task: str = CAPTION  # of SCHEMAS

    @property
    def fingerprint(self) -> str:
        """Equal exactly when the same rows stand in the same order."""
        return hashlib.sha256(self.shards.hashes.encode()).hexdigest()

    def to_json(self) -> str:
        version = VERSIONS[any(shard.hashed_by == BLAKE3 for shard in self.shards)]
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


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        UserError: the folder, the manifest or a shard named in it is missing or malformed, or a shard
            has another length than the manifest says.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"No shards at {folder}: the folder does not exist; make it with `mvlm-data shard`.")
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        splits = sorted(found.parent.name for found in folder.glob(f"*/{MANIFEST}"))
        so = (
            f"it holds {', '.join(splits)}; give one of these, such as {folder / splits[-1]}."
            if splits
            else "no finished shard folder; run `mvlm-data shard` to its end."
        )
        raise UserError(f"{folder} holds no {MANIFEST}: {so}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or shard the corpus again.") from None
    return parse_manifest(content, str(path))


def parse_manifest(text: str, path: str) -> Manifest:
    """The manifest that was read from `path`; raises `UserError` where it is malformed."""
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
    """Those of a manifest; raises ValueError, KeyError or TypeError where they are malformed."""
    of_shards = zip(*tables.values(), strict=True) if tables else [()] * len(shards)
    for shard, index, beside in zip(shards, indexes or [None] * len(shards), of_shards, strict=True):
        (hashed_by,) = shard.keys() & HASH_NAMES
        found = Shard(shard["file"], shard["rows"], shard["bytes"], shard[hashed_by], hashed_by=hashed_by)
        if index:
            captions = index.get("captions", UNCOUNTED)
            found = replace(found, index_bytes=index["bytes"], index_sha256=index["sha256"], captions=captions)
        named = zip(tables, beside, strict=True)
        yield replace(found, tables=tuple((name, each["bytes"], each["sha256"]) for name, each in named if each))
