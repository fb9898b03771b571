"""The shard format: Arrow IPC files and the manifest that names, counts and hashes them.

A corpus is a folder of `NNNNNN.arrow` files and one `manifest.json`:

    {"format": "mvlm-shards", "version": 1, "rows": R, "captions": C, "image_bytes": Y,
     "fingerprint": "<sha256 over the shards' hashes>",
     "shards": [{"file": "000000.arrow", "rows": r, "bytes": b, "sha256": "<of the file>"}, ...]}

Nothing but the manifest is read when a corpus is opened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from mvlm.errors import UserError

MANIFEST = "manifest.json"
FORMAT = "mvlm-shards"
VERSION = 1

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique within the corpus
        pa.field("image", pa.binary(), nullable=False),  # an encoded file (JPEG, PNG, ...) as it came
        pa.field("captions", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),  # one or more
        pa.field("source", pa.string(), nullable=False),  # where the pair comes from, "" if unknown
        pa.field("width", pa.int32(), nullable=False),  # pixels, as decoded
        pa.field("height", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),  # of the image bytes
    ]
)


@dataclass(frozen=True)
class Shard:
    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    rows: int
    captions: int
    image_bytes: int
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Equal exactly when the same rows stand in the same order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def to_json(self) -> str:
        head = {"format": FORMAT, "version": VERSION, "rows": self.rows, "captions": self.captions}
        head |= {"image_bytes": self.image_bytes, "fingerprint": self.fingerprint}
        return json.dumps(head | {"shards": [asdict(shard) for shard in self.shards]}, indent=1) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        UserError: the folder, the manifest or a shard named in it is missing or malformed, or a shard
            has another length than the manifest says.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"No shards at {folder}: the folder does not exist; make it with `python -m data_tools shard`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise UserError(
                f"{path} is of format {content['format']!r} version {content['version']!r}, "
                f"not {FORMAT!r} version {VERSION}: shard the corpus again."
            )
        shards = tuple(Shard(**shard) for shard in content["shards"])
        manifest = Manifest(content["rows"], content["captions"], content["image_bytes"], shards)
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {MANIFEST}: no finished shard folder; run `python -m data_tools shard` to its end."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a valid manifest ({type(error).__name__}: {error}): shard the corpus again."
        ) from None
    if content.get("fingerprint") != manifest.fingerprint or sum(shard.rows for shard in shards) != manifest.rows:
        raise UserError(f"{path} contradicts itself (rows or fingerprint): it was edited; shard the corpus again.")
    if any(Path(shard.file).name != shard.file for shard in shards):
        raise UserError(f"{path} names a shard outside its folder: shard the corpus again.")
    return manifest


def check_lengths(folder: str | Path, manifest: Manifest) -> None:
    """Raise `UserError` naming the first shard that is missing or was cut short, and the rows lost."""
    for shard in manifest.shards:
        path = Path(folder) / shard.file
        size = path.stat().st_size if path.exists() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes and not {shard.bytes}"
            raise UserError(f"{path} {found}: {shard.rows} rows are lost; copy or shard it again.")
