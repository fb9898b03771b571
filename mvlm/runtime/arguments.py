"""Checks of values on the command line, and of numbers in a call."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TypeVar

from mvlm.errors import UserError, first_line

Number = TypeVar("Number", int, float)


def within(kind: Callable[[str], Number], allowed: Callable[[Number], bool], words: str) -> Callable[[str], Number]:
    """An argparse type: a number for which `allowed` holds, which `words` puts into words for the error."""

    def convert(text: str) -> Number:
        value = kind(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"must be {words}")
        return value

    convert.__name__ = kind.__name__  # argparse names it if the text is no number
    return convert


count = within(int, lambda value: value >= 0, "0 or more")
positive = within(int, lambda value: value >= 1, "1 or more")
above_zero = within(float, lambda value: 0 < value < math.inf, "above 0")


def command_words(text: str) -> list[str]:
    """An argparse type: a command, as a shell reads it."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not a command ({first_line(error)}): {text}") from None


def whole(name: str, value: object, least: int = 1) -> int:
    """The number that was given as `name`; raises `UserError` if it is not whole, or below `least`."""
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{value!r} cannot be `{name}`: give a `{name}` of {least} or more, a whole number.")
    return int(value)


def path_of(name: str, value: object) -> Path:
    """The path that was given as `name`; raises `UserError` if it is none, or empty: that is the current folder."""
    if not isinstance(value, (str, PathLike)) or not str(value).strip():
        raise UserError(f"{value!r} cannot be `{name}`: give a path.")
    return Path(value)
