"""Places that a command is given: files and folders of this machine, or URLs of any protocol that fsspec knows.

Commands check them before slow imports. A file at a URL is fetched in full before it is read, so that a network fault
is retried and never taken for the end of the file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob as glob_files
from glob import has_magic
from pathlib import Path
from urllib.parse import unquote

from mvlm.config.shipped import find_example
from mvlm.errors import UserError, no_shards
from mvlm.runtime.patterns import is_pattern, matching
from mvlm.runtime.storage import Storage

PathOrUrl = Path | str
"""A file or folder of this machine, or the URL of one."""

URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")
REMEDY = "check the URL, and what its store needs for access"


def as_place(text: str) -> PathOrUrl:
    """A URL as it is; a path, or a file:// URL, as a path."""
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    return text if "://" in text else find_example(text)


def expanded(texts: Iterable[str]) -> list[PathOrUrl]:
    """The places that paths, URLs and patterns of them name, those of a pattern in the order of their names.

    Raises:
        UserError: a pattern matches nothing.
    """
    return [place for text in texts for place in _expanded(text)]


def _expanded(text: str) -> Sequence[PathOrUrl]:
    place = as_place(text)
    found: Sequence[PathOrUrl]
    if isinstance(place, Path):
        if place.exists() or not has_magic(str(place)):
            return [place]
        found = sorted(map(Path, glob_files(str(place))))
    else:
        if not is_pattern(place):
            return [place]
        found = matching(place, REMEDY)
    if not found:
        raise UserError(f"Nothing matches {text}: check the pattern.")
    return found


def destination(text: str) -> PathOrUrl:
    """Where a corpus is written: a URL as it is, anything else as a path."""
    return text if URL.fullmatch(text) else Path(text)


def require_shards(texts: Iterable[str]) -> None:
    """Raises `UserError` for the first folder of this machine that is not there; patterns are not expanded."""
    for text in texts:
        place = as_place(text)
        if isinstance(place, Path) and not has_magic(text) and not place.is_dir():
            raise no_shards(place)


def require_inputs(texts: Iterable[str]) -> None:
    """The same for what a source reads, which may be a file too."""
    for text in texts:
        place = as_place(text)
        if isinstance(place, Path) and not has_magic(text) and not place.exists():
            raise UserError(f"No file or folder at {place}: check the path.")


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
    """The file, on this machine for the duration of the block; raises as `size_of`."""
    if isinstance(place, Path):
        yield place
        return
    with fetched_files(place.rpartition("/")[0], [name_of(place)]) as folder:
        if not (folder / name_of(place)).exists():
            raise UserError(f"There is nothing at {place}: {REMEDY}.")
        yield folder / name_of(place)


@contextmanager
def fetched_files(folder: PathOrUrl, names: Iterable[str]) -> Iterator[Path]:
    """A local folder of the same name with these of a folder's files, as far as they exist."""
    if isinstance(folder, Path):
        yield folder
        return
    storage = Storage(folder, REMEDY)
    with tempfile.TemporaryDirectory(prefix="mvlm-input-") as above:
        here = Path(above) / name_of(folder)
        here.mkdir()
        for name in names:
            storage.download(name, here / name)
        yield here
