"""What can be given as a text in a call."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.errors import UserError

Texts = str | Iterable[str]


def listed_texts(texts: Texts, tokens: CaptionTokenizer) -> list[str]:
    """One text or several as a list. Warns if some are cut, and raises `UserError` if one is not a string."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    if strangers := [text for text in listed if not isinstance(text, str)]:
        raise UserError(f"A {type(strangers[0]).__name__} is not a text: give a string, or several.")
    if cut := tokens.cut_warning(listed):
        warnings.warn(cut, stacklevel=3)
    return listed
