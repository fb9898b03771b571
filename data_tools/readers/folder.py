"""A folder, or an uncompressed tar of one, that holds `captions.jsonl` and the images it names.

One JSON object per line: `id`, `image` (path relative to the folder), `captions` (a list; or one `caption`),
and optionally `source`; other fields are free and serve `--split-by`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

from ..inputs import REMEDY, PathOrUrl, name_of
from ..part import Cursor, Unit
from ..record import Dropped, Record
from .annotated import located_lines, mean_size
from .captions import captions_of
from .images import MISSING_IMAGE, Refused, read_inside, spellings
from .json_stream import parse_json
from .members import DAMAGE, MAX_IMAGE_BYTES, is_inside, open_tar, unsafe
from .source import Cuttable

CAPTIONS = "captions.jsonl"


class FolderSource(Cuttable):
    """folders, or uncompressed tars of one, with captions.jsonl: on each line a JSON object with id, image (a path in
    the folder), captions (a list) and, if you like, source and other fields; key: id"""

    def __init__(self, paths: list[PathOrUrl]) -> None:
        self._folders: list[Opened] = list(map(_opened, paths))
        self.size = sum(folder.captions_size for folder in self._folders)

    def units(self) -> Iterator[Unit]:
        """The lines of the captions files."""
        size = mean_size(self)
        for place, folder in enumerate(self._folders):
            with folder.open_captions() as file:
                yield from (((place, offset, line), size) for line, (offset, _) in enumerate(located_lines(file), 1))

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        self.position = 0
        for place, folder in enumerate(self._folders):
            if (place,) >= start[:1]:
                offset, first = start[1:] if start[:1] == (place,) else (0, 1)
                with folder.open_captions() as file:
                    file.seek(offset)
                    for number, (offset, line) in enumerate(located_lines(file), first):
                        if end is not None and (place, offset, number) >= end:
                            return
                        self.position += len(line)
                        where = f"{folder.name}/{CAPTIONS}:{number}"
                        if line.strip() and (self.only is None or where in self.only):
                            yield _record(folder, line, where)


def _opened(path: PathOrUrl) -> Opened:
    if isinstance(path, str):
        return RemoteFolder(path)
    return Folder(path) if path.is_dir() else Archive(path)


class Opened(Protocol):
    """What a folder and an archive have in common. `name` is the last part of the path: no output holds a full path."""

    name: str
    captions_size: int

    def open_captions(self) -> BinaryIO: ...

    def read_image(self, name: str) -> bytes:
        """The bytes of the image at a path relative to the folder; raises `Refused`."""
        ...


class Folder:
    """A folder on disk."""

    def __init__(self, path: Path) -> None:
        self._root = path.resolve()
        self.name = self._root.name
        captions = path / CAPTIONS
        if not captions.is_file():
            raise UserError(f"{path} holds no {CAPTIONS}: give a folder with one JSON object per line in that file.")
        try:
            captions.open("rb").close()
        except OSError as error:
            raise UserError(f"{captions} cannot be read ({error.strerror}): change its permissions.") from None
        self._captions = captions
        self.captions_size = captions.stat().st_size

    def open_captions(self) -> BinaryIO:
        return self._captions.open("rb")

    def read_image(self, name: str) -> bytes:
        data = read_inside(self._root, name)
        if data is None:
            raise Refused(MISSING_IMAGE)
        return data


class RemoteFolder:
    """A folder at a URL, whose images are read one by one."""

    def __init__(self, url: str) -> None:
        self.name, self._storage = name_of(url), Storage(url, REMEDY)
        size = self._storage.size(CAPTIONS)
        if size is None:
            raise UserError(f"{url} holds no {CAPTIONS}: check the URL.")
        self.captions_size = size

    def open_captions(self) -> BinaryIO:
        return io.BytesIO(self._storage.read(CAPTIONS) or b"")

    def read_image(self, name: str) -> bytes:
        if not is_inside(name):
            raise Refused("image path leaves the folder")
        image = self._storage.read(name)
        if image is None:
            raise Refused(MISSING_IMAGE)
        return image


class Archive:
    """An uncompressed tar with the folder's files at its top or inside one folder."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"No folder or archive at {path}: check the path.")
        self.name = path.name
        self._tar = open_tar(path, "r:")
        try:
            self._members = {str(PurePosixPath(member.name)): member for member in self._tar.files()}
        except DAMAGE as error:
            raise UserError(f"{path} is cut short or damaged ({error}): copy it again.") from None
        found = [name for name in self._members if PurePosixPath(name).name == CAPTIONS and name.count("/") <= 1]
        if len(found) != 1 or unsafe(self._members[found[0]]):
            raise UserError(f"{path} holds {len(found)} files {CAPTIONS} at or just below its top: it must hold one.")
        self._captions = self._members[found[0]]
        self._top = PurePosixPath(found[0]).parent
        self.captions_size = self._captions.size

    def open_captions(self) -> BinaryIO:
        return self._tar.content(self._captions)

    def read_image(self, name: str) -> bytes:
        if not is_inside(name):
            raise Refused("image path leaves the folder")
        paths = (str(self._top / spelled) for spelled in spellings(name))
        member = next((self._members[path] for path in paths if path in self._members), None)
        if member is None:
            raise Refused(MISSING_IMAGE)
        if reason := unsafe(member):
            raise Refused(reason)
        if member.size > MAX_IMAGE_BYTES:
            raise Refused("image file is too large")
        try:
            return self._tar.content(member).read()
        except (tarfile.TarError, OSError):
            raise Refused("image cannot be read") from None


def _record(folder: Opened, line: bytes, where: str) -> Record | Dropped:
    try:
        content: Any = parse_json(line)
    except (ValueError, RecursionError) as error:
        return Dropped("", "line is not JSON in UTF-8", where, str(error)[:200])
    if not isinstance(content, dict):
        return Dropped("", "line is not a JSON object", where)
    key = content.get("id")
    if not isinstance(key, str | int) or isinstance(key, bool):
        return Dropped("", "no id", where)
    image = content.get("image")
    if not isinstance(image, str) or not image:
        return Dropped(str(key), "no image path", where)
    captions = content.get("captions", content.get("caption", []))
    source = content.get("source")
    try:
        data = folder.read_image(image)
    except Refused as refused:
        return Dropped(str(key), str(refused), where, image, source if isinstance(source, str) else "")
    return Record(
        key=str(key),
        image=data,
        captions=captions_of(captions),
        source=source if isinstance(source, str) else "",
        fields=content,
        where=where,
    )
