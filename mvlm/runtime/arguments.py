"""Values on the command line that have a range."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def within(kind: Callable[[str], Number], allowed: Callable[[Number], bool], words: str) -> Callable[[str], Number]:
    """An argparse type: a number for which `allowed` holds, which `words` says to who gives another."""

    def convert(text: str) -> Number:
        value = kind(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"must be {words}")
        return value

    convert.__name__ = kind.__name__  # which argparse names where the text is no number
    return convert


count = within(int, lambda value: value >= 0, "0 or more")
positive = within(int, lambda value: value >= 1, "1 or more")
above_zero = within(float, lambda value: 0 < value < math.inf, "above 0")
