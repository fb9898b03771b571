"""Names of a model's parameters in checkpoints of earlier formats, and in settings that name a part of it."""

from __future__ import annotations

FORMAT = 3
"""The format of checkpoints written now: 3 may have a tensor in pieces; the first ones do not state a format."""

RENAMED: dict[int, dict[str, str]] = {1: {"word_head": "mlm_head"}, 2: {}}
"""For each earlier format, the modules that the next one renames."""


def present_name(name: str, written_in: int = 1) -> str:
    """The present name of a parameter, or a module, that had this name in a given format."""
    for number in range(written_in, FORMAT):
        for old, new in RENAMED[number].items():
            if f"{name}.".startswith(f"{old}."):
                name = new + name.removeprefix(old)
    return name
