"""Reading untrusted tar archives, within bounds; nothing is ever extracted to disk."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from mvlm.errors import UserError

MAX_IMAGE_BYTES = 256_000_000
MAX_TEXT_BYTES = 16_000_000
"""Longer members and lines are not read: no image or caption is that long, and memory is finite."""

MAX_MEMBER_BYTES = 1 << 33
"""The most that a plain header can state; one that claims more is damaged, or was made to keep a reader busy."""

MAX_HEADER_BYTES = 16_384
"""Of a long name or of pax records, which tarfile reads in one go; file systems allow paths of 4,096."""

MAX_ZERO_BYTES = 1 << 24
"""Zeros in a row: they end an archive, and separate archives that were joined by `cat`."""

DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a damaged archive, compressed or not, may raise."""

PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
"""The first bytes of compressed files, which a tar may be in, and of archives that are taken for one."""

_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def unsafe(member: tarfile.TarInfo) -> str:
    """Why a member, unless it is a folder, must not be read; "" if it may."""
    if not is_inside(member.name):
        return "path leaves the archive"
    if not member.isfile():
        return "a link or device, not a file"
    return ""


def is_inside(name: str) -> bool:
    """Whether a path is relative and never climbs with `..`."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


class StrictHeader(tarfile.TarInfo):
    """A header that is an error if it is cut short, garbled, missing or beyond all bounds.

    tarfile by itself takes most of these for the end of the archive, and reads as much as a header claims.
    """

    @classmethod
    def fromtarfile(cls, tar: StrictTar) -> Self:  # type: ignore[override]
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.zero_bytes += tarfile.BLOCKSIZE
            if tar.zero_bytes > MAX_ZERO_BYTES:
                raise tarfile.ReadError(f"nothing but zeros up to byte {tar.offset}") from None
            raise  # tarfile reads on after it: another archive may follow
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if tar.zero_bytes:
                raise  # the end of a whole archive
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None
        except (tarfile.HeaderError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None
        tar.zero_bytes = 0
        if not 0 <= header.size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member claims {header.size:,} bytes at byte {header.offset}")
        return header

    def _proc_member(self, tar: StrictTar) -> tarfile.TarInfo:
        """tarfile's own hook, which reads what comes between this header and the member that it describes."""
        if self.type in _EXTENSIONS and not 0 <= self.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or its attributes claim {self.size:,} bytes at byte {tar.offset}")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]

    def _proc_sparse(self, tar: StrictTar) -> tarfile.TarInfo:
        """Refuse a file with holes: tarfile would read its whole map, however long."""
        raise tarfile.ReadError(f"a file with holes (of GNU's sparse format) at byte {tar.offset}")

    def _proc_gnusparse_10(self, *_: object) -> None:
        """As `_proc_sparse`, in pax format."""
        raise tarfile.ReadError("a file with holes (of GNU's sparse format)")


class StrictTar(tarfile.TarFile):
    """An archive of strict headers, or several joined by `cat`."""

    tarinfo = StrictHeader
    zero_bytes = 0  # in a row, up to the current position

    def files(self) -> Iterator[tarfile.TarInfo]:
        """The members other than folders, in order, without keeping them in memory; may raise any of `DAMAGE`."""
        while (member := self.next()) is not None:
            self.members: list[tarfile.TarInfo] = []  # otherwise tarfile would keep every header it has seen
            if not member.isdir():
                yield member

    def content(self, member: tarfile.TarInfo) -> BinaryIO:
        """The content of a regular member, to be read before the next one is asked for."""
        file = self.extractfile(member)
        assert file is not None, "only regular members are read"
        return file  # type: ignore[return-value]


def open_tar(path: Path, mode: str, file: BinaryIO | None = None) -> StrictTar:
    """Open an archive for reading; `mode` is tarfile's. If `file` is given, `path` is only its name.

    Raises:
        UserError: there is no such file, or it is not such an archive.
    """
    try:
        return StrictTar.open(None if file else path, mode, file, ignore_zeros=True)  # type: ignore[call-overload, no-any-return]
    except FileNotFoundError:
        raise UserError(f"No archive at {path}: check the path.") from None
    except DAMAGE as error:
        packed = "" if file else _packed_by(path)
        if packed and (mode == "r:" or packed in ("zip", "zstd")):
            raise UserError(f"{path} is compressed with {packed}: unpack it and give the tar or folder.") from None
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{path} cannot be read as a tar archive ({reason}): check that it is one.") from None


def _packed_by(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(max(map(len, PACKED)))
    return next((name for magic, name in PACKED.items() if start.startswith(magic)), "")
