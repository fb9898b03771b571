"""JSON files too large for memory, read value by value, in memory that is bounded whatever the file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson
import numpy as np

from mvlm.errors import UserError

from .members import MAX_TEXT_BYTES

MAX_DEPTH = 100
"""Brackets within brackets: ijson keeps the path to each one, so that memory grows with the square of the depth."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)', re.DOTALL)
"""A JSON string, or the beginning of one that continues after the end of the chunk."""

_STEPS = np.zeros(256, np.int64)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def json_items(file: BinaryIO, prefix: str) -> Iterator[Any]:
    """The values at an ijson prefix such as "images.item", one at a time: the file is never held in full.

    Raises:
        UserError: the file is not JSON, ends early, or has brackets or strings that no annotations have.
    """
    try:
        yield from ijson.items(_Bounded(file), prefix, use_float=True)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file.name} is cut short or not JSON ({reason}): download it again.") from None


def parse_json(data: bytes) -> Any:
    """A value small enough to be held in memory; raises `ValueError` or `RecursionError` if it is not JSON in UTF-8."""
    return json.loads(data.removeprefix(codecs.BOM_UTF8).decode())


class _Bounded:
    """A JSON file without its byte-order mark, read only as long as its brackets and strings are plausible."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begun = False
        self._depth = self._string_bytes = 0
        self._open_string = b""  # the beginning of a string that the last chunk left open

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        if chunk and not self._begun:
            self._begun = True
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
        self._follow(chunk)
        return chunk

    def _follow(self, chunk: bytes) -> None:
        bare = _STRING.sub(rb"<\1", self._open_string + chunk)
        is_open = bare.endswith((b"<", b"<\\"))  # a string that ends leaves <"
        self._string_bytes = self._string_bytes + len(chunk) if bare in (b"<", b"<\\") else 0
        self._open_string = b'"' + bare[bare.rindex(b"<") + 1 :] if is_open else b""
        depths = self._depth + np.cumsum(_STEPS[np.frombuffer(bare, np.uint8)])
        if len(depths):
            self._depth = int(depths[-1])
        if len(depths) and depths.max() > MAX_DEPTH:
            self._refuse(f"nests its values more than {MAX_DEPTH} deep")
        if self._string_bytes > MAX_TEXT_BYTES:
            self._refuse(f"has a text of more than {MAX_TEXT_BYTES:,} bytes")

    def _refuse(self, what: str) -> None:
        raise UserError(f"{self._file.name} {what}, as no annotations do: check that it is the right file.")
