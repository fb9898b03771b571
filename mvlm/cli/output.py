"""Files that commands write for people, completely or not at all."""

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
    """Raises `UserError` if the file to be written is a folder; for use before long work."""
    if path and path.is_dir():
        raise UserError(f"{path} is a folder: give {option} a file in it.")


def write_whole(path: Path, content: str | bytes, option: str) -> None:
    """Write text or bytes to a temporary file and rename it; missing folders are made.

    Raises:
        UserError: the path is a folder, or cannot be written; names the `option` that gave it.
    """
    require_no_folder(path, option)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In JSON, a file name that is not UTF-8 becomes an escape, from which a reader recovers the name.
        whole = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
        temporary.write_bytes(whole)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path} cannot be written ({error}): give {option} another place.") from None


def write_json(path: Path | None, content: Any) -> None:
    """Write the file of --json, if it was given."""
    if path:
        write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", "--json")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG in the folder of --out, as `write_whole` does."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), "--out")
