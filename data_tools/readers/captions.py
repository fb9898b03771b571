"""Captions as people write them into JSON and tables."""

from __future__ import annotations

import ast
from contextlib import suppress
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


def unfolded(value: Any) -> Any:
    """The list of texts that a field of a table spells out as pandas or JSON do, or else the value as it is."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            listed = ast.literal_eval(value)
            if all(isinstance(one, str) for one in listed):
                return listed
    return value
