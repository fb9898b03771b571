"""Tars in webdataset's layout: consecutive members whose names agree up to a dot are one record.

The image is the member whose last extension is an image's. Captions come from `.json` ("captions", a list, or
"caption"; "source" optional; other fields serve `--split-by`) and, where that has none, from `.txt` (one caption).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarInfo
from typing import Any, BinaryIO

from mvlm.data.images.encoded import EXTENSIONS, OTHERS
from mvlm.data.shards.in_place import PlaceInFile
from mvlm.errors import UserError
from mvlm.runtime.log import logger

from ..part import Cursor, Unit
from ..record import Dropped, Record
from .captions import captions_of
from .inputs import PathOrUrl, fetched, name_of, size_of
from .json_stream import parse_json
from .members import DAMAGE, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, StrictTar, open_tar, unsafe

TEXT_EXTENSIONS = {"txt", "json"}
CUT = "tar is cut short or damaged from here on"

MOST_KINDS = 50
"""Reasons for which files are not used; beyond that many they are counted together, for names may be anything."""

Names = tuple[str, str] | None
"""The key and the extensions in a member's name, or None where it has no extension."""

_FIRST_DOT = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


def up_to_first_dot(name: str) -> Names:
    """As webdataset's own reader has it, `base_plus_ext`."""
    match = _FIRST_DOT.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def up_to_last_dot(name: str) -> Names:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else None


RULES: dict[str, Callable[[str], Names]] = {"first-dot": up_to_first_dot, "last-dot": up_to_last_dot}
"""By the words of `--key-up-to`: up to where a member's name is the key of its record."""


class WebdatasetSource:
    """tars, compressed or not, each streamed from end to end; --key-up-to: first-dot or last-dot, where in its name the
    key of a member ends (default: first-dot, as webdataset has it, but last-dot where by that an image would take
    another's place); --image-key, --caption-key: extensions of the image and of the captions, such as
    jpg;png; --in-place: of tars that are not compressed; key: the folder in the tar and that part of the name"""

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
                if not path.is_file():
                    raise UserError(f"No archive at {path}: check the path.")
                open_tar(path, "r:*").close()
        self._paths, self._sizes = paths, [size_of(path) for path in paths]
        named = key_up_to or ("first-dot" if image_key or caption_key else "")  # behind which those stand
        self._rule = RULES[named] if named else None
        self._keys = MemberKeys(_keys(image_key), _keys(caption_key))
        self._in_place = in_place
        self.only: Container[str] | None = None
        self.size = sum(self._sizes)
        self.position = 0
        self.unused: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record | Dropped]:
        return self.read()

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
        """The tar, in which its images can stay; raises `UserError` where they cannot."""
        path = self._paths[place]
        if not plain or not isinstance(path, Path):
            why = "is compressed" if isinstance(path, Path) else "is at a URL"
            raise UserError(f"{path} {why}, so that its images cannot stay in it: leave out --in-place.")
        return path

    def _names(self, name: str) -> Names:
        if self._rule is None and name.rpartition("/")[2].count(".") > 1:
            self._rule = self._decided()  # until here both rules have said the same
        return (self._rule or up_to_first_dot)(name)

    def _decided(self) -> Callable[[str], Names]:
        """The first dot, unless two images of any of the tars would then have one key; reads all their headers."""
        stems: dict[int, int] = {}  # of hashes, for there may be many
        for path in self._paths:
            try:
                with _opened(path) as (_, tar):
                    for member in tar.files():
                        first, last = up_to_first_dot(member.name), up_to_last_dot(member.name)
                        if not first or not last or last[1] not in EXTENSIONS:
                            continue
                        if stems.setdefault(hash(first[0]), hash(last[0])) != hash(last[0]):
                            logger("data_tools").warning(_warning(path, member, first[0]))
                            return up_to_last_dot
            except DAMAGE:
                continue  # it is reported where it is met
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


@dataclass(frozen=True)
class MemberKeys:
    """Which extensions, behind the key of a record, its image and its captions have; none = any that is known."""

    image: frozenset[str] = frozenset()
    caption: frozenset[str] = frozenset()


def _keys(text: str) -> frozenset[str]:
    """Read "jpg;png", as webdataset has it."""
    return frozenset(filter(None, (key.strip().lower().removeprefix(".") for key in text.split(";"))))


@dataclass
class _Group:
    """The members read so far of one record, or why it is refused."""

    key: str
    where: str
    unused: Counter[str]
    keys: MemberKeys
    stays_in: Path | None
    wanted: bool = True
    image_at: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)  # "image", "txt", "json"
    plain: dict[str, bool] = field(default_factory=dict)  # of each, whether its name has but one extension
    foreign: str = ""  # the format of an image that cannot be read
    rivals: list[str] = field(default_factory=list)  # images beside the one kept whose names are no longer
    refused: str = ""
    detail: str = ""

    def add(self, tar: StrictTar, member: TarInfo, extensions: str) -> None:
        if not self.wanted:
            return
        if reason := unsafe(member):
            self._refuse(reason, member.name)
        if self.refused:
            return
        kind = extensions.rpartition(".")[2]
        if self.keys.image and kind in EXTENSIONS and extensions not in self.keys.image:
            _count(self.unused, "an image of another key")
        elif self.keys.caption and kind not in EXTENSIONS and extensions not in self.keys.caption:
            _count(self.unused, "a text of another key")
        elif self.keys.caption and kind not in EXTENSIONS:
            self._keep(tar, member, "json" if kind == "json" else "txt", True, MAX_TEXT_BYTES)
        elif kind in EXTENSIONS:
            self._keep(tar, member, "image", "." not in extensions, MAX_IMAGE_BYTES)
        elif kind in TEXT_EXTENSIONS:
            self._keep(tar, member, kind, "." not in extensions, MAX_TEXT_BYTES)
        elif kind in OTHERS:
            self.foreign = OTHERS[kind]
        else:
            _count(self.unused, f".{kind} is not read" if kind.isalnum() and len(kind) <= 8 else "not read")

    def _keep(self, tar: StrictTar, member: TarInfo, part: str, plain: bool, most: int) -> None:
        """Of several, such as `x.jpg` and `x.mask.png`, the one with but one extension is the record's."""
        if member.size > most:
            self._refuse("image file is too large" if part == "image" else "caption file is too large", member.name)
            return
        if part in self.parts:
            _count(self.unused, f"its record has another {part}")
        if part not in self.parts or plain > self.plain[part]:
            self.parts[part], self.plain[part] = tar.content(member).read(), plain
            if part == "image":
                self.rivals, self.image_at = [], member.offset_data
        elif part == "image" and plain == self.plain[part]:
            self.rivals = [*self.rivals, member.name][:3]  # the names are but for the message

    def _refuse(self, reason: str, detail: str) -> None:
        self.refused, self.detail = reason, detail


def tar_records(
    tar: StrictTar,
    tar_name: str,
    names: Callable[[str], Names],
    unused: Counter[str],
    only: Container[str] | None = None,
    keys: MemberKeys = MemberKeys(),
    stays_in: Path | None = None,
) -> Iterator[Record | Dropped]:
    """The records of an open tar; `where` is "TAR:MEMBER", the first member of the record.

    Files that no record has a use for are counted in `unused`, by the reason. `stays_in` is the tar where its images
    are to stay in it.
    """
    group: _Group | None = None
    try:
        for member in tar.files():
            found = names(member.name)
            if found is None:
                _count(unused, "no extension")
                continue
            key, extensions = found
            if group is None or group.key != key:
                if group is not None:
                    yield from _record(group)
                where = f"{tar_name}:{member.name}"
                group = _Group(key, where, unused, keys, stays_in, only is None or where in only)
            group.add(tar, member, extensions)
    except DAMAGE as error:
        yield Dropped(group.key if group else "", CUT, tar_name, str(error))
        return
    if group is not None:
        yield from _record(group)


def _count(unused: Counter[str], reason: str) -> None:
    unused[reason if reason in unused or len(unused) < MOST_KINDS else "not read"] += 1


def _no_image(group: _Group) -> str:
    """Why a group with a file of interest is no record, or "" where it has one image."""
    if group.rivals:
        return "more than one image"
    if "image" in group.parts:
        return ""
    return f"unsupported image format ({group.foreign})" if group.foreign else "no image" if group.parts else ""


def _record(group: _Group) -> Iterator[Record | Dropped]:
    """The group's record; nothing where it holds no file of interest."""
    if group.refused:
        yield Dropped(group.key, group.refused, group.where, group.detail)
        return
    image = group.parts.get("image")
    if reason := _no_image(group):
        yield Dropped(group.key, reason, group.where, ", ".join(group.rivals))
    if reason or image is None:
        return
    if group.foreign:
        _count(group.unused, f"{group.foreign} is not read")
    try:
        content: Any = parse_json(group.parts.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        yield Dropped(group.key, "the .json is not JSON in UTF-8", group.where, str(error)[:200])
        return
    content = content if isinstance(content, dict) else {}
    captions = content.get("captions", content.get("caption"))
    if "txt" in group.parts and not captions:
        captions = group.parts["txt"]
    elif "txt" in group.parts and group.parts["txt"].decode("utf-8", "replace").strip() not in captions_of(captions):
        _count(group.unused, "a .txt beside captions in a .json")
    source = content.get("source")
    yield Record(
        key=group.key,
        image=image,
        captions=captions_of(captions),
        source=source if isinstance(source, str) else "",
        fields=content,
        where=group.where,
        place=PlaceInFile(group.stays_in, ((group.image_at, len(image)),)) if group.stays_in else None,
    )
