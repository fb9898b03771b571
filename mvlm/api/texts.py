"""What can be given as a text in a call."""

from __future__ import annotations

from collections.abc import Iterable

from mvlm.errors import UserError

Texts = str | Iterable[str]


def listed_texts(texts: Texts) -> list[str]:
    """One text or several as a list. Raises `UserError` if one is not a string."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    if strangers := [text for text in listed if not isinstance(text, str)]:
        raise UserError(f"A {type(strangers[0]).__name__} is not a text: give a string, or several.")
    return listed
