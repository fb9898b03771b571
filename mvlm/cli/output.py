"""Files that commands write for people: whole or not there."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvlm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


def require_no_folder(path: Path | None, option: str) -> None:
    """Raises `UserError` where the file that is to be written is a folder; to be asked before work that takes long."""
    if path and path.is_dir():
        raise UserError(f"{path} is a folder: give {option} a file in it.")


def write_whole(path: Path, content: str | bytes, option: str) -> None:
    """Write text or bytes beside and rename; missing folders are made.

    Raises:
        UserError: it is a folder, or cannot be written; names the `option` that says where.
    """
    require_no_folder(path, option)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not UTF-8 stands in JSON as an escape, from which its reader has the name itself.
        whole = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
        temporary.write_bytes(whole)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path} cannot be written ({error}): give {option} another place.") from None


def write_json(path: Path | None, content: Any) -> None:
    """What --json asks for, where it is given."""
    if path:
        write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", "--json")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG in the folder of --out, as `write_whole` does."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), "--out")
