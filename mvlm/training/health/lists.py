"""Lists in the run folder that attempts append to and the next ones read: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime import dist


def read_listed(path: Path, key: str) -> list[int]:
    """The number under `key` of every whole line, the same on all ranks, which must all call.

    A last line that a kill cut off is left out: it had not been acted upon, or will be met again.

    Raises:
        UserError: on every rank, where what lies there cannot be read.
    """
    return dist.as_rank_0(lambda: _read(path, key))


def _read(path: Path, key: str) -> list[int]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): move away what lies there.") from None
    found = []
    for line in lines:
        try:
            found.append(int(json.loads(line)[key]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
