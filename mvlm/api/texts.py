"""The forms in which calls accept texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.errors import UserError

Texts = str | Iterable[str]


def listed_texts(texts: Texts, tokens: CaptionTokenizer) -> list[str]:
    """One text or several, as a list. Warns if some are cut, and raises `UserError` if one is not a string."""
    several = isinstance(texts, Iterable) and not isinstance(texts, (str, bytes))
    listed = [require_text(text) for text in (texts if several else [texts])]
    if cut := tokens.cut_warning(listed):
        warnings.warn(cut, stacklevel=3)
    return listed


def require_text(text: object) -> str:
    """The text itself; raises `UserError` if it is not a string."""
    if not isinstance(text, str):
        raise UserError(f"A {type(text).__name__} is not a text: give a string.")
    return text
