"""Reading images from folders of other people's files: nothing outside the folders is ever opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mvlm.errors import UserError

from .members import MAX_IMAGE_BYTES, is_inside

MISSING_IMAGE = "image is missing"


class Refused(Exception):
    """An image that must not or cannot be read; the message is the reason."""


class ImageFolders:
    """Folders in which images are looked for, in this order.

    Raises:
        UserError: one of them is no folder.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(f"No folder of images at {folder}: check --images.")
        self._roots = [Path(folder).resolve() for folder in folders]

    def read(self, names: Iterable[str]) -> bytes:
        """The first image there is at one of these paths within one of the folders; raises `Refused`."""
        for name in names:
            for root in self._roots:
                data = read_inside(root, name)
                if data is not None:
                    return data
        raise Refused(MISSING_IMAGE)

    def look_for(self, names: Iterable[str]) -> bytes:
        """No bytes, where `read` would find an image; raises `Refused` as that does."""
        if not any(find_inside(root, name) for name in names for root in self._roots):
            raise Refused(MISSING_IMAGE)
        return b""


def read_inside(root: Path, name: str) -> bytes | None:
    """The file at `name` below the resolved folder `root`; None where there is none. Raises as `find_inside`."""
    path = find_inside(root, name)
    try:
        return path.read_bytes() if path else None
    except FileNotFoundError:
        return None
    except OSError:
        raise Refused("image cannot be read") from None


def find_inside(root: Path, name: str) -> Path | None:
    """Where the file at `name` below the resolved folder `root` lies; None where there is none.

    Raises:
        Refused: the path or a link on it leaves the folder, or it is no readable file of a plausible size.
    """
    if not is_inside(name):
        raise Refused("image path leaves the folder")
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise Refused("image path leaves the folder")
        if not path.is_file():
            raise Refused("image is no file")
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise Refused("image file is too large")
        return path
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RuntimeError):
        raise Refused("image cannot be read") from None
