"""The language of captions, by py3langid, which is optional."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LEAST_SCORE = -1e38
"""What py3langid gives texts in which it recognises nothing."""

NO_LANGUAGE = "There is no py3langid in this Python, so there will be no column language: pip install 'mvlm[language]'."


def language_finder() -> Callable[[Sequence[str]], str | None] | None:
    """A function that names the language of a row's captions, such as "en", or returns None if they say too little;
    None without py3langid."""
    try:
        from py3langid import classify
    except ImportError:
        return None

    def find(captions: Sequence[str]) -> str | None:
        language, score = classify("\n".join(captions))
        return str(language) if score > LEAST_SCORE else None

    return find
