"""What `mvlm predict` is asked and what it answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image

from mvlm.errors import UserError
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.pretrained.runs import Loaded

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    images: tuple[Path, ...]
    sentences: tuple[str, ...]
    top: int  # best answers shown
    search: SearchSettings
    draws: bool  # whether pictures are wanted


@dataclass(frozen=True)
class Answer:
    """The same three times: for a program, to read, and to look at."""

    entries: list[dict[str, Any]]  # of what JSON can hold
    text: str
    pictures: dict[str, Image.Image] = field(default_factory=dict)  # by file name


class Prediction(Protocol):
    name: str

    def run(self, loaded: Loaded[Any], asked: Asked, device: torch.device) -> Answer:
        """Raises `UserError` where a file is no picture or the question does not fit."""
        ...


def pair_up(images: Sequence[T], sentences: Sequence[str]) -> tuple[list[T], list[str]]:
    """As many images as sentences, in their order; a single one goes with each of the others.

    Raises:
        UserError: there are none, or they are neither equally many nor one and several.
    """
    count = max(len(images), len(sentences))
    if not count or {len(images), len(sentences)} - {1, count}:
        raise UserError(
            f"{len(images)} images and {len(sentences)} sentences cannot be paired: "
            "give as many of each, or one of either."
        )
    return (
        list(images) * (count if len(images) == 1 else 1),
        list(sentences) * (count if len(sentences) == 1 else 1),
    )


def printable(text: object) -> str:
    """On one line and without what a terminal would obey: file names and sentences come from anywhere."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c).startswith("C") else c for c in str(text))


def file_name(number: int, path: Path) -> str:
    """Of the picture about the question with this number and this image."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.stem)[:60]
    return f"{number:04d}_{stem}.png"
