"""Images that stay in their original file: the row holds a reference in place of the image.

A reference is `MARK`, the CRC-32 of what follows, the number of the image's runs and the length of the path, both
uint32, the runs (offset in the file and length, both uint64), the file's absolute path, and any bytes that no run of
the file has because compression left them out. No image begins like `MARK`. The row's own checksum is of the image, so
that a changed file is noticed just like a changed shard.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zlib_ng import zlib_ng

from mvlm.data.images.encoded import ChangedImage
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.opened import OpenShards
from mvlm.errors import UserError, cannot_read

MARK = b"\0mvlm&"
_CHECKED = struct.Struct(f"<{len(MARK)}sI")
_COUNTS = struct.Struct("<II")
_RUN = struct.Struct("<QQ")

KEPT = (1 << 64) - 1
"""The offset of a run whose bytes are kept in the reference."""


class PlaceInFile(NamedTuple):
    """Where the bytes of an image are, one run after another.

    Attributes:
        runs: each an offset in the file and a length; those with the offset `KEPT` are in `kept`, in this order.
    """

    file: Path
    runs: tuple[tuple[int, int], ...]
    kept: bytes = b""


def reference(place: PlaceInFile) -> bytes:
    """What a row holds in place of the image."""
    path = str(place.file.absolute()).encode()
    runs = b"".join(_RUN.pack(*run) for run in place.runs)
    content = _COUNTS.pack(len(place.runs), len(path)) + runs + path + place.kept
    return _CHECKED.pack(MARK, zlib_ng.crc32(content)) + content


def image_bytes(image: bytes | memoryview) -> int:
    """The length of an image, or of the one that a reference points to."""
    return len(image) if not is_reference(image) else sum(size for _, size in _place(memoryview(image))[0])


def is_reference(image: bytes | memoryview) -> bool:
    return len(image) > 0 and image[0] == MARK[0] and image[: len(MARK)] == MARK


def resolved(image: bytes | memoryview) -> memoryview:
    """The image itself: for a reference, a view of its file, or a copy if it is in pieces there.

    Raises:
        ChangedImage: the reference is not as it was written.
        UserError: the file is missing or was cut; names it.
    """
    view = memoryview(image)
    if not is_reference(view):
        return view
    runs, path, kept = _place(view)
    file, parts = _mapped(path), []
    is_whole, size_of_file = file.is_whole(), len(file.data)
    for offset, size in runs:
        if offset == KEPT:
            parts.append(kept[:size])
            kept = kept[size:]
            continue
        if not is_whole or offset + size > size_of_file:
            raise _gone(path, ValueError("it is shorter than it was"))
        parts.append(file.data[offset : offset + size])
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _place(reference: memoryview) -> tuple[list[tuple[int, int]], str, memoryview]:
    """The runs, the path, and the bytes that are kept."""
    start = _CHECKED.size + _COUNTS.size
    if len(reference) < start:
        raise ChangedImage
    _, checked = _CHECKED.unpack_from(reference)
    if zlib_ng.crc32(reference[_CHECKED.size :]) != checked:
        raise ChangedImage
    count, length = _COUNTS.unpack_from(reference, _CHECKED.size)
    path_at = start + count * _RUN.size
    kept_at = path_at + length
    runs, path = list(_RUN.iter_unpack(reference[start:path_at])), str(reference[path_at:kept_at], "utf-8")
    return runs, path, reference[kept_at:]


_files: dict[str, MappedFile] = {}
"""The files that this process has mapped, within the limits of `OpenShards`."""


@cache
def _bounds() -> OpenShards:
    return OpenShards()


def _mapped(path: str) -> MappedFile:
    if file := _files.get(path):
        return file
    try:
        file = _files[path] = MappedFile(path)
    except (OSError, ValueError) as error:
        raise _gone(path, error) from None
    _bounds().add(_files, path, len(file.data), _bounds().shards)
    return file


def _gone(path: str, error: OSError | ValueError) -> UserError:
    return cannot_read(path, error, "put it back as it was, or shard the corpus of its images again")
