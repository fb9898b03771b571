"""Images seen before: by their bytes, or because they look the same."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mvlm.data.images.encoded import BadImage
from mvlm.data.shards.schema import IMAGE_COLUMNS, Shards, read_manifest
from mvlm.errors import UserError

from .corpora import batches
from .engines import Map
from .filters import Checked
from .image import decode
from .look import look_of
from .picture_index import PictureIndex, Spill

DUPLICATE_ID = "duplicate id"
DUPLICATE, NEAR_DUPLICATE, EXCLUDED = "image is a duplicate", "image is a near duplicate", "image is excluded"

ENTRY = struct.Struct("<16s16sII")
"""Digest of the id, digest of the image's bytes, and the lengths of the look and the name that follow."""


class DedupIndex:
    """The ids and images of the records kept so far: about 200 bytes a record in memory, thumbnails in `folder`.

    Args:
        restarts: whether `new` will be asked, at times.
    """

    def __init__(self, dedup: str, folder: Path, restarts: bool = False) -> None:
        self._dedup = dedup
        self._keys: set[bytes] = set()
        self._exact: dict[bytes, int] = {}
        self._names = Spill(folder)  # of those in `_exact`
        self._pictures = PictureIndex(folder)
        self._new = bytearray()
        self._restarts = restarts

    def refuses(self, key: str, found: Checked, name: str) -> tuple[str, str]:
        """Why the record must not be kept and which other it is like, or "" twice; then it is remembered by `name`."""
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        look = found.pictures[0].look if self._dedup == "perceptual" else b""
        if digest in self._keys:
            return DUPLICATE_ID, ""
        if look and (twin := self._pictures.twin(look)):
            return NEAR_DUPLICATE, f"looks like {twin}"
        if self._dedup == "exact" and found.exact in self._exact:
            twin = self._names.read(self._exact[found.exact]).decode()
            return DUPLICATE, f"has the bytes of {twin}"
        text = name.encode("utf-8", "replace") if self._dedup else b""
        self._remember(digest, found.exact, look, text)
        if self._restarts:
            self._new += ENTRY.pack(digest, found.exact, len(look), len(text)) + look + text
        return "", ""

    def _remember(self, digest: bytes, exact: bytes, look: bytes, name: bytes) -> None:
        self._keys.add(digest)
        if self._dedup == "exact":
            self._exact[exact] = self._names.add(name)
        if look:
            self._pictures.add(look, name.decode())

    def new(self) -> bytes:
        """What was remembered since this was last asked, for `restore`."""
        new = bytes(self._new)
        self._new.clear()
        return new

    def restore(self, new: bytes) -> None:
        place = 0
        while place < len(new):
            digest, exact, looks, names = ENTRY.unpack_from(new, place)
            place += ENTRY.size
            self._remember(digest, exact, new[place : place + looks], new[place + looks : place + looks + names])
            place += looks + names


class Excluded:
    """The images of some corpora, by how they look; all are decoded on opening."""

    def __init__(self, corpora: Iterable[Path], folder: Path, run: Map) -> None:
        self._pictures = PictureIndex(folder)
        for (name, _), look in run(row_look, _images(corpora), row_size):
            if not look:
                raise UserError(f"{name} cannot be decoded: find what is damaged with `mvlm-data verify`.")
            self._pictures.add(look, name)

    def twin(self, found: Checked) -> str:
        """The name of one of them that looks like a picture of the record, or ""."""
        return next(filter(None, (self._pictures.twin(picture.look) for picture in found.pictures if picture.look)), "")


def row_look(row: tuple[str, bytes]) -> bytes:
    """How the image of a row looks; empty if it does not decode."""
    try:
        image = decode(row[1], colour_beyond=0).colour
    except BadImage:
        return b""
    assert image is not None
    return look_of(image)


def row_size(row: tuple[str, bytes]) -> int:
    return len(row[1])


def _images(corpora: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image, also of those that share a record."""
    for folder in corpora:
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            for batch in batches(folder, replace(manifest, shards=Shards([shard]))):
                for column in IMAGE_COLUMNS:
                    if column in batch.schema.names:
                        for key, image in zip(batch["key"], batch[column], strict=True):
                            yield f"{key.as_py()} ({folder / shard.file})", image.as_py()
