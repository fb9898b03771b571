"""The records of a tar in webdataset's layout: consecutive members of one key are one record, whose image is the member
whose last extension is an image's. Captions come from `.json` ("captions", a list, or "caption"; "source" optional;
other fields serve `--split-by`) and, where that has none, from `.txt` (one caption).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarInfo
from typing import Any

from mvlm.data.images.encoded import EXTENSIONS, OTHERS
from mvlm.data.shards.in_place import PlaceInFile

from ..record import Dropped, Record
from .captions import captions_of
from .json_stream import parse_json
from .members import DAMAGE, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, StrictTar, unsafe

TEXT_EXTENSIONS = {"txt", "json"}
CUT = "tar is cut short or damaged from here on"

MOST_KINDS = 50
"""Reasons for which files are not used; beyond that many, they are counted together, since names may be anything."""

Names = tuple[str, str] | None
"""The key and the extensions in a member's name, or None if it has no extension."""


@dataclass(frozen=True)
class MemberKeys:
    """The extensions that a record's image and captions have after its key; none = any that is known."""

    image: frozenset[str] = frozenset()
    caption: frozenset[str] = frozenset()


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
    plain: dict[str, bool] = field(default_factory=dict)  # of each, whether its name has only one extension
    foreign: str = ""  # the format of an image that cannot be read
    rivals: list[str] = field(default_factory=list)  # other images with as few extensions as the one kept
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
        """Keep a member; of several, such as `x.jpg` and `x.mask.png`, the one with only one extension."""
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
            self.rivals = [*self.rivals, member.name][:3]  # the names are only for the message

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

    Files that no record uses are counted in `unused`, by reason. `stays_in` is the tar if its images are to stay in
    it.
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
    """Why a group is not a record; "" if it has one image, or no file of interest."""
    if group.rivals:
        return "more than one image"
    if "image" in group.parts:
        return ""
    if group.foreign:
        return f"unsupported image format ({group.foreign})"
    return "no image" if group.parts else ""


def _record(group: _Group) -> Iterator[Record | Dropped]:
    """The group's record; nothing if it holds no file of interest."""
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
    captions = content.get("captions", content.get("caption", []))
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
