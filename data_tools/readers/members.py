"""What may be read of a tar archive, which is hostile until shown otherwise; nothing is ever extracted to disk."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Self

from mvlm.errors import UserError

MAX_IMAGE_BYTES = 256_000_000
MAX_TEXT_BYTES = 16_000_000
"""Longer members and lines are not read: no image or caption is that long, and memory is finite."""


def unsafe(member: tarfile.TarInfo) -> str:
    """Why a member that is no folder must not be read, or "" where it may."""
    if not is_inside(member.name):
        return "path leaves the archive"
    if not member.isfile():
        return "a link or device, not a file"
    return ""


def is_inside(name: str) -> bool:
    """Whether a path is relative and never climbs with `..`."""
    path = PurePosixPath(name)
    return bool(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


class StrictHeader(tarfile.TarInfo):
    """A header that is cut, garbled or absent is an error; tarfile alone takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark of a whole archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None  # type: ignore[attr-defined]


def open_tar(path: Path, mode: str) -> tarfile.TarFile:
    """Open an archive for reading; `mode` is tarfile's.

    Raises:
        UserError: there is no such file, or it is no such archive.
    """
    try:
        return tarfile.open(path, mode, tarinfo=StrictHeader)  # type: ignore[call-overload, no-any-return]
    except FileNotFoundError:
        raise UserError(f"No archive at {path}: check the path.") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{path} cannot be read as a tar archive ({reason}): check that it is one.") from None
