"""Files that commands write for people: whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mvlm.errors import UserError


def write_whole(path: Path, content: str | bytes, option: str) -> None:
    """Write text or bytes beside and rename; missing folders are made.

    Raises:
        UserError: the file cannot be written; names the `option` that says where.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path} cannot be written ({error}): give {option} another place.") from None
