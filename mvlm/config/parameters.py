"""Names of a model's parameters in checkpoints of earlier formats, and in settings that name a part of it."""

from __future__ import annotations

FORMAT = 3
"""Of the checkpoints that are written now: 3 may have a tensor in pieces; the first ones say nothing of a format."""

RENAMED: dict[int, dict[str, str]] = {1: {"word_head": "mlm_head"}, 2: {}}
"""For each earlier format, modules that have another name from the next one on."""


def present_name(name: str, written_in: int = 1) -> str:
    """The name that a parameter, or a module, of a format has now."""
    for number in range(written_in, FORMAT):
        for old, new in RENAMED[number].items():
            if f"{name}.".startswith(f"{old}."):
                name = new + name.removeprefix(old)
    return name
