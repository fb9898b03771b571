"""The files of a source, wherever they lie: on this machine, or at a URL of any protocol that fsspec knows.

A file at a URL is fetched in full before it is read, so that a fault of the network is tried again and never taken for
the end of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob as glob_files
from glob import has_magic
from pathlib import Path
from urllib.parse import unquote

from mvlm.errors import UserError
from mvlm.runtime.patterns import is_pattern, matching
from mvlm.runtime.storage import Storage

PathOrUrl = Path | str
"""A file or folder of this machine, or the URL of one."""

REMEDY = "check the URL, and what its store needs for access"


def as_place(text: str) -> PathOrUrl:
    """A URL as it is; a path, or a URL of file://, as a path."""
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    return text if "://" in text else Path(text)


def expanded(texts: Iterable[str]) -> list[PathOrUrl]:
    """The places that paths, URLs and patterns of them name, those of a pattern in the order of their names.

    Raises:
        UserError: a pattern fits nothing.
    """
    return [place for text in texts for place in _expanded(text)]


def _expanded(text: str) -> Sequence[PathOrUrl]:
    place = as_place(text)
    if place.exists() or not has_magic(str(place)) if isinstance(place, Path) else not is_pattern(place):
        return [place]
    found: Sequence[PathOrUrl] = (
        sorted(map(Path, glob_files(str(place)))) if isinstance(place, Path) else matching(place, REMEDY)
    )
    if not found:
        raise UserError(f"Nothing fits {text}: check the pattern.")
    return found


def name_of(place: PathOrUrl) -> str:
    return place.name if isinstance(place, Path) else place.rstrip("/").rpartition("/")[2]


def size_of(place: PathOrUrl) -> int:
    """Bytes of a file.

    Raises:
        UserError: there is none.
    """
    if isinstance(place, Path):
        return place.stat().st_size
    size = Storage(place, REMEDY).size("")
    if size is None:
        raise UserError(f"There is nothing at {place}: {REMEDY}.")
    return size


@contextmanager
def fetched(place: PathOrUrl) -> Iterator[Path]:
    """The file on this machine for the time of the block; raises as `size_of`."""
    if isinstance(place, Path):
        yield place
        return
    with fetched_files(place.rpartition("/")[0], [name_of(place)]) as folder:
        if not (folder / name_of(place)).exists():
            raise UserError(f"There is nothing at {place}: {REMEDY}.")
        yield folder / name_of(place)


@contextmanager
def fetched_files(folder: PathOrUrl, names: Iterable[str]) -> Iterator[Path]:
    """A folder of this machine with these of a folder's files, as far as they are there."""
    if isinstance(folder, Path):
        yield folder
        return
    storage = Storage(folder, REMEDY)
    with tempfile.TemporaryDirectory(prefix="mvlm-input-") as here:
        for name in names:
            storage.download(name, Path(here) / name)
        yield Path(here)
