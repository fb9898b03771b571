"""Images seen before, by their bytes or by how they look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mvlm.data.images.encoded import BadImage
from mvlm.data.shards.files import Shards
from mvlm.data.shards.in_place import resolved
from mvlm.data.shards.schema import IMAGE_COLUMNS, read_manifest
from mvlm.errors import UserError

from .corpora import batches, corpora_here
from .engines import Map
from .image import decode
from .inputs import PathOrUrl
from .marks import RowMark
from .perceptual_hash import perceptual_hash_of
from .perceptual_hash_file import PerceptualHashFile, Spill

DUPLICATE_ID = "duplicate id"
APART = "an earlier record has this id; sort a table in which the rows of an image are apart"
DUPLICATE, NEAR_DUPLICATE, EXCLUDED = "image is a duplicate", "image is a near duplicate", "image is excluded"


class DedupIndex:
    """The ids of the rows kept so far and, as far as `dedup` needs them, their images."""

    def __init__(self, dedup: str, folder: Path) -> None:
        self._dedup = dedup
        self._ids: set[bytes] = set()
        self._exact: dict[bytes, int] = {}
        self._names = Spill(folder)  # of the rows in `_exact`
        self.pictures = PerceptualHashFile(folder)
        self._at: dict[int, int] = {}  # their numbers, by place

    def refuses(self, mark: RowMark, place: int, like: Sequence[int]) -> tuple[str, str]:
        """Why the row must not be kept and which other it is like; if it may be, remember it and return "" twice.

        Args:
            place: of its image.
            like: the places of earlier images that may show the same.
        """
        if mark.id in self._ids:
            return DUPLICATE_ID, APART
        known = [self._at[one] for one in like if one in self._at]
        if self._dedup == "perceptual" and (twin := self.pictures.twin(mark.look, known)):
            return NEAR_DUPLICATE, f"looks like {twin}"
        if self._dedup == "exact" and mark.exact in self._exact:
            return DUPLICATE, f"has the bytes of {self._names.read(self._exact[mark.exact]).decode()}"
        self.keep(mark, place)
        return "", ""

    def keep(self, mark: RowMark, place: int) -> None:
        self._ids.add(mark.id)
        if self._dedup == "exact":
            self._exact[mark.exact] = self._names.add(mark.name.encode("utf-8", "replace"))
        if self._dedup == "perceptual":
            self._at[place] = self.pictures.add(mark.look, mark.name)


def excluded_pictures(corpora: Sequence[PathOrUrl], folder: Path, run: Map) -> PerceptualHashFile:
    """The images of some corpora, by how they look."""
    pictures = PerceptualHashFile(folder)
    with corpora_here(corpora) as here:
        for (name, _), look in run(row_perceptual_hash, _images(here), row_size):
            if not look:
                raise UserError(f"{name} cannot be decoded: find what is damaged with `mvlm-data verify`.")
            pictures.add(look, name)
    return pictures


def row_perceptual_hash(row: tuple[str, bytes]) -> bytes:
    """How the image of a row looks; empty if it does not decode."""
    try:
        image = decode(row[1], colour_beyond=0).colour
    except BadImage:
        return b""
    assert image is not None
    return perceptual_hash_of(image)


def row_size(row: tuple[str, bytes]) -> int:
    return len(row[1])


def _images(corpora: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image, including both of a record that has two."""
    for folder in corpora:
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            for batch in batches(folder, replace(manifest, shards=Shards([shard]))):
                for column in filter(batch.schema.names.__contains__, IMAGE_COLUMNS):
                    for key, image in zip(batch["key"], batch[column], strict=True):
                        yield f"{key.as_py()} ({folder / shard.file})", bytes(resolved(image.as_buffer()))
