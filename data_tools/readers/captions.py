"""Captions as people write them into JSON and tables."""

from __future__ import annotations

from typing import Any

FIELDS = ("raw", "caption", "text")
"""Fields in which an object holds its caption, in Karpathy's files and on the Hugging Face hub."""


def captions_of(value: Any) -> list[Any]:
    """The captions in a value: a text, an object such as {"raw": text}, or a list of either; each still unchecked.

    An object may hold a list too: this is how `datasets` returns a list of objects.
    """
    captions: list[Any] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            item = next((item[field] for field in FIELDS if field in item), None)
        captions += item if isinstance(item, list) else [item]
    return captions
