"""Reading images from folders of other people's files: nothing outside the folders is ever opened."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from mvlm.errors import UserError

from ..filters import SURROGATE
from .members import MAX_IMAGE_BYTES, is_inside

MISSING_IMAGE = "image is missing"
NOT_UTF8 = "image path is not UTF-8"
LINKS = ("http://", "https://")


class Refused(Exception):
    """An image that must not or cannot be read; the message is the reason."""


class ImageFolders:
    """Folders in which images are looked for, in this order.

    Raises:
        UserError: one of them is not a folder.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(f"No folder of images at {folder}: check --images.")
        self._roots = [Path(folder).resolve() for folder in folders]

    def read(self, names: Sequence[str]) -> bytes:
        """The first image found at one of these paths in one of the folders; raises `Refused`."""
        for name in names:
            for root in self._roots:
                data = read_inside(root, name)
                if data is not None:
                    return data
        raise _none_at(names)

    def look_for(self, names: Sequence[str]) -> bytes:
        """No bytes if `read` would find an image; otherwise raises `Refused`."""
        if not any(find_inside(root, name) for name in names for root in self._roots):
            raise _none_at(names)
        return b""


def _none_at(names: Iterable[str]) -> Refused:
    """Why no image is at these paths: if the table is in another encoding, those that are not ASCII name none."""
    return Refused(NOT_UTF8 if any(SURROGATE.search(name) for name in names) else MISSING_IMAGE)


def beginnings(folders: Iterable[str | Path]) -> list[str]:
    """What absolute paths of files in these folders begin with, as the folders were given and with links resolved."""
    roots = [(os.path.abspath(folder), os.path.realpath(folder)) for folder in folders]
    return [os.path.join(root, "") for both in roots for root in both]


def read_inside(root: Path, name: str) -> bytes | None:
    """The file at `name` below the resolved folder `root`; None if there is none. Raises as `find_inside`."""
    path = find_inside(root, name)
    if path is None:
        return None
    try:
        return _content(path)
    except FileNotFoundError:
        return None
    except OSError:
        raise Refused("image cannot be read") from None


def _content(path: str) -> bytes:
    """The content of a file, with as few system calls as possible."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        content = os.read(file, size + 1)
        while len(content) != size:  # over a network, it may come in pieces
            piece = os.read(file, MAX_IMAGE_BYTES)
            if not piece:
                break
            content += piece
        return content
    finally:
        os.close(file)


def find_inside(root: Path, name: str) -> str | None:
    """Where the file at `name`, however spelled, below the resolved folder `root` lies; None if there is none.

    Raises:
        Refused: the path or a link on it leaves the folder, or it is not a readable file of a plausible size.
    """
    return next(filter(None, (_find(root, spelled) for spelled in spellings(name))), None)


def spellings(name: str) -> Iterator[str]:
    """A path as it is given and, if it is not ASCII, as the disk may hold it: composed, decomposed as on a Mac, or in
    Latin-1, as old archives are unpacked."""
    yield name
    if not name.isascii():
        composed = unicodedata.normalize("NFC", name)
        yield from (composed, unicodedata.normalize("NFD", name))
        with suppress(UnicodeEncodeError):
            yield os.fsdecode(composed.encode("latin-1"))


def _find(root: Path, name: str) -> str | None:
    if name.startswith(LINKS):
        raise Refused("image is a link: the source urls downloads those")
    if not is_inside(name.removeprefix("/")):  # tables often have absolute paths
        raise Refused("image path leaves the folder")
    folder, file = os.path.split(name.rstrip("/"))
    try:
        path = os.path.join(_folder_inside(root, folder), file)
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            path = _resolved_inside(root, path)
            found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("image is not a file")
        if found.st_size > MAX_IMAGE_BYTES:
            raise Refused("image file is too large")
        return path
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RuntimeError):
        raise Refused("image cannot be read") from None


@lru_cache(4096)
def _folder_inside(root: Path, folder: str) -> str:
    """A folder of many images, resolved only once: that takes a system call for each part of its path."""
    return _resolved_inside(root, os.path.join(root, folder))


def _resolved_inside(root: Path, path: str) -> str:
    """Where a path leads; raises `Refused` if that is outside, OSError or RuntimeError if it leads nowhere."""
    resolved = Path(path).resolve(strict=True)
    if not resolved.is_relative_to(root):
        raise Refused("image path leaves the folder")
    return str(resolved)
