"""Tars in webdataset's layout: consecutive members whose names agree up to the first dot are one record.

The image is the member with an image's extension. Captions come from `.json` ("captions", a list, or "caption";
"source" optional; other fields serve `--split-by`) and, where that has none, from `.txt` (one caption).
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.readers.members import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, StrictHeader, open_tar, unsafe
from data_tools.record import Dropped, Record
from mvlm.errors import UserError

IMAGE_EXTENSIONS = {"jpg", "jpeg", "png", "webp", "gif", "bmp"}
TEXT_EXTENSIONS = {"txt", "json"}
CUT = "tar is cut short or damaged from here on"


@dataclass
class _Group:
    """The members read so far of one record, by extension, or why it is refused."""

    key: str
    where: str
    wanted: bool = True
    members: dict[str, bytes] = field(default_factory=dict)
    refused: str = ""
    detail: str = ""

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
        if not self.wanted:
            return
        if reason := unsafe(member):
            self._refuse(reason, member.name)
        if self.refused or extension not in IMAGE_EXTENSIONS | TEXT_EXTENSIONS:
            return
        is_image = extension in IMAGE_EXTENSIONS
        if member.size > (MAX_IMAGE_BYTES if is_image else MAX_TEXT_BYTES):
            self._refuse("image file is too large" if is_image else "caption file is too large", member.name)
        elif is_image and self.members.keys() & IMAGE_EXTENSIONS:
            self._refuse("more than one image", member.name)
        else:
            file = tar.extractfile(member)
            assert file is not None, "only regular members are read"
            self.members[extension] = file.read()

    def _refuse(self, reason: str, detail: str) -> None:
        self.refused, self.detail = reason, detail


class WebdatasetSource:
    """The records of tars, compressed or not, in the order given; each is streamed once from end to end."""

    def __init__(self, paths: list[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise UserError(f"No archive at {path}: check the path.")
            open_tar(path, "r:*").close()
        self._paths = paths
        self.only: Container[str] | None = None
        self.size = sum(path.stat().st_size for path in paths)
        self.position = 0

    def __iter__(self) -> Iterator[Record | Dropped]:
        start = 0
        for path in self._paths:
            size = path.stat().st_size
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictHeader) as tar:
                for record in tar_records(tar, path.name, self.only):
                    self.position = start + file.tell()
                    yield record
            start += size


def tar_records(tar: tarfile.TarFile, tar_name: str, only: Container[str] | None = None) -> Iterator[Record | Dropped]:
    """The records of an open tar; `where` is "TAR:MEMBER", the first member of the record."""
    group: _Group | None = None
    try:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or tarfile would keep every header it has seen
            if member.isdir():
                continue
            key, extension = _key(member.name)
            if group is None or group.key != key:
                if group is not None:
                    yield from _record(group)
                where = f"{tar_name}:{member.name}"
                group = _Group(key, where, only is None or where in only)
            group.add(tar, member, extension)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        yield Dropped(group.key if group else "", CUT, tar_name, str(error))
        return
    if group is not None:
        yield from _record(group)


def _key(name: str) -> tuple[str, str]:
    """The record's key (folder and base name up to the first dot) and the extension, in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _record(group: _Group) -> Iterator[Record | Dropped]:
    """The group's record; nothing where it holds no file of interest."""
    if group.refused:
        yield Dropped(group.key, group.refused, group.where, group.detail)
        return
    if not group.members:
        return
    image = next((group.members[e] for e in group.members if e in IMAGE_EXTENSIONS), None)
    if image is None:
        yield Dropped(group.key, "no image", group.where)
        return
    try:
        content: Any = json.loads(group.members.get("json", b"{}").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        yield Dropped(group.key, "the .json is not JSON in UTF-8", group.where, str(error)[:200])
        return
    content = content if isinstance(content, dict) else {}
    captions = content.get("captions", content.get("caption"))
    if not captions and "txt" in group.members:
        captions = group.members["txt"]
    source = content.get("source")
    yield Record(
        key=group.key,
        image=image,
        captions=captions if isinstance(captions, list) else [captions],
        source=source if isinstance(source, str) else "",
        fields=content,
        where=group.where,
    )
