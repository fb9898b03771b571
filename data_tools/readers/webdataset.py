"""Tars in webdataset's layout, and up to which dot a member's name is the key of its record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import TarInfo
from typing import BinaryIO

from mvlm.data.images.encoded import EXTENSIONS
from mvlm.errors import UserError
from mvlm.runtime.log import logger

from ..inputs import PathOrUrl, fetched, name_of, size_of
from ..part import Cursor, Unit
from ..record import Dropped, Record
from .members import DAMAGE, StrictTar, open_tar
from .source import Cuttable
from .tar_records import MemberKeys, Names, tar_records

_FIRST_DOT = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


def up_to_first_dot(name: str) -> Names:
    """As webdataset's own reader does, in `base_plus_ext`."""
    match = _FIRST_DOT.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def up_to_last_dot(name: str) -> Names:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else None


RULES: dict[str, Callable[[str], Names]] = {"first-dot": up_to_first_dot, "last-dot": up_to_last_dot}
"""By the words of `--key-up-to`: where in a member's name the key of its record ends."""


class WebdatasetSource(Cuttable):
    """tars, compressed or not, each streamed from end to end; --key-up-to: first-dot or last-dot, where in its name the
    key of a member ends (default: first-dot, as in webdataset, but last-dot if two images would otherwise have the same
    key); --image-key, --caption-key: extensions of the image and of the captions, such as jpg;png; --in-place: of tars
    that are not compressed; key: the folder in the tar and that part of the name"""

    def __init__(
        self,
        paths: list[PathOrUrl],
        key_up_to: str = "",
        image_key: str = "",
        caption_key: str = "",
        in_place: bool = False,
    ) -> None:
        for path in paths:
            if isinstance(path, Path):
                if path.is_dir():
                    raise UserError(f"{path} is a folder: give the tars in it, such as '{path}/*.tar'.")
                if not path.is_file():
                    raise UserError(f"No archive at {path}: check the path.")
                open_tar(path, "r:*").close()
        self._paths, self._sizes = paths, [size_of(path) for path in paths]
        named = key_up_to or ("first-dot" if image_key or caption_key else "")  # after which these extensions follow
        self._rule = RULES[named] if named else None
        self._keys = MemberKeys(_keys(image_key), _keys(caption_key))
        self._in_place = in_place
        self.size = sum(self._sizes)
        self.unused: Counter[str] = Counter()

    def units(self) -> Iterator[Unit]:
        """The tars."""
        return (((number,), size) for number, size in enumerate(self._sizes))

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        before = 0
        self.unused.clear()
        for place in range(start[0] if start else 0, end[0] if end else len(self._paths)):
            with _opened(self._paths[place]) as (file, tar):
                name = name_of(self._paths[place])
                stays_in = self._stays_in(place, tar.fileobj is file) if self._in_place else None
                for record in tar_records(tar, name, self._names, self.unused, self.only, self._keys, stays_in):
                    self.position = before + file.tell()
                    yield record
            before += self._sizes[place]

    def _stays_in(self, place: int, plain: bool) -> Path:
        """The tar, if its images can stay in it; raises `UserError` if not."""
        path = self._paths[place]
        if not plain or not isinstance(path, Path):
            why = "is compressed" if isinstance(path, Path) else "is at a URL"
            raise UserError(f"{path} {why}, so that its images cannot stay in it: leave out --in-place.")
        return path

    def _names(self, name: str) -> Names:
        if self._rule is None and name.rpartition("/")[2].count(".") > 1:
            self._rule = self._decided()  # up to here both rules have said the same
        return (self._rule or up_to_first_dot)(name)

    def _decided(self) -> Callable[[str], Names]:
        """The first dot, unless two images of any of the tars would then have one key; reads all their headers."""
        stems: dict[int, int] = {}  # only hashes, since there may be many
        for path in self._paths:
            try:
                with _opened(path) as (_, tar):
                    for member in tar.files():
                        first, last = up_to_first_dot(member.name), up_to_last_dot(member.name)
                        if not first or not last or last[1] not in EXTENSIONS:
                            continue
                        if stems.setdefault(hash(first[0]), hash(last[0])) != hash(last[0]):
                            logger("mvlm-data").warning(_warning(path, member, first[0]))
                            return up_to_last_dot
            except DAMAGE:
                continue  # it is reported when the tar is read
        return up_to_first_dot


def _warning(path: PathOrUrl, member: TarInfo, key: str) -> str:
    return (
        f"{path}: up to the first dot, where webdataset ends a key, {member.name!r} and another image are both "
        f"{key!r}: all keys of this source end at the last dot instead. Give --key-up-to to have either rule."
    )


@contextmanager
def _opened(place: PathOrUrl) -> Iterator[tuple[BinaryIO, StrictTar]]:
    with fetched(place) as path, path.open("rb") as file, open_tar(path, "r:*", file) as tar:
        yield file, tar


def _keys(text: str) -> frozenset[str]:
    """Read "jpg;png", as webdataset writes it."""
    return frozenset(filter(None, (key.strip().lower().removeprefix(".") for key in text.split(";"))))
