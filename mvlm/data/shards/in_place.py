"""Images that stay in the file that they came in: a row holds a reference, where another one holds the image.

A reference is `MARK`, the CRC-32 of what follows, the offset and the length of the image in its file, both uint64, and
the file's absolute path. No image begins as `MARK` does. The row's own checksum is of the image, so that a file that
was changed is noticed as a changed shard is.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from zlib_ng import zlib_ng

from mvlm.data.images.encoded import ChangedImage
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.opened import OpenShards
from mvlm.errors import UserError

MARK = b"\0mvlm@"
_CHECKED = struct.Struct(f"<{len(MARK)}sI")
_PLACE = struct.Struct("<QQ")
_HEAD_BYTES = _CHECKED.size + _PLACE.size


def reference(file: Path, offset: int, size: int) -> bytes:
    """What stands for an image of `size` bytes that begins at `offset` of a file."""
    place = _PLACE.pack(offset, size) + str(file.absolute()).encode()
    return _CHECKED.pack(MARK, zlib_ng.crc32(place)) + place


def image_bytes(image: bytes | memoryview) -> int:
    """The length of an image, or of the one that is referred to."""
    return len(image) if not is_reference(image) else _place(memoryview(image))[1]


def is_reference(image: bytes | memoryview) -> bool:
    return len(image) > 0 and image[0] == MARK[0] and image[: len(MARK)] == MARK


def resolved(image: bytes | memoryview) -> memoryview:
    """The image itself, a view of its file where it is referred to.

    Raises:
        ChangedImage: the reference is not the one that was written.
        UserError: the file is missing or was cut; names it.
    """
    view = memoryview(image)
    if not is_reference(view):
        return view
    offset, size, path = _place(view)
    file = _mapped(path)
    if not file.is_whole() or offset + size > len(file.data):
        raise _gone(path, "it is shorter than it was")
    return file.data[offset : offset + size]


def _place(reference: memoryview) -> tuple[int, int, str]:
    """Offset, length and path."""
    if len(reference) <= _HEAD_BYTES:
        raise ChangedImage
    _, checked = _CHECKED.unpack_from(reference)
    if zlib_ng.crc32(reference[_CHECKED.size :]) != checked:
        raise ChangedImage
    offset, size = _PLACE.unpack_from(reference, _CHECKED.size)
    return offset, size, str(reference[_HEAD_BYTES:], "utf-8")


_files: dict[str, MappedFile] = {}
"""Those that this process has mapped, within the bounds of `OpenShards`."""


@cache
def _bounds() -> OpenShards:
    return OpenShards()


def _mapped(path: str) -> MappedFile:
    if file := _files.get(path):
        return file
    try:
        file = _files[path] = MappedFile(path)
    except (OSError, ValueError) as error:
        raise _gone(path, str(error)) from None
    _bounds().add(_files, path, len(file.data), _bounds().shards)
    return file


def _gone(path: str, why: str) -> UserError:
    return UserError(
        f"{path} cannot be read ({why}), in which the images of these shards lie: put it back as it was, or shard the "
        "corpus again."
    )
