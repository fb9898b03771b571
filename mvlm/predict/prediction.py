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
from mvlm.runtime.wording import counted

T = TypeVar("T")

JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
"""Control characters that are part of how Persian, Hindi and emoji are spelled."""


@dataclass(frozen=True)
class Asked:
    images: tuple[Path, ...]
    sentences: tuple[str, ...]
    top: int  # how many of the best answers to show
    search: SearchSettings
    draws: bool  # whether pictures are wanted


@dataclass(frozen=True)
class Answer:
    """An answer in three forms: for programs, to read, and to look at."""

    entries: list[dict[str, Any]]  # of JSON values
    text: str
    pictures: dict[str, Image.Image] = field(default_factory=dict)  # by file name


class Prediction(Protocol):
    name: str

    def run(self, loaded: Loaded[Any], asked: Asked, device: torch.device) -> Answer:
        """Raises `UserError` if a file is not a picture or the question does not suit the model."""
        ...


def pair_up(images: Sequence[T], sentences: Sequence[str]) -> tuple[list[T], list[str]]:
    """Image i with sentence i; a single image or sentence is paired with each of the others.

    Raises:
        UserError: there are none, or their numbers differ and neither is one.
    """
    count = max(len(images), len(sentences))
    if not count or {len(images), len(sentences)} - {1, count}:
        raise UserError(
            f"{counted(len(images), 'image')} and {counted(len(sentences), 'sentence')} cannot be paired: "
            "give as many of each, or one of either."
        )
    return (
        list(images) * (count if len(images) == 1 else 1),
        list(sentences) * (count if len(sentences) == 1 else 1),
    )


def printable(text: object) -> str:
    """The text on one line, without control characters: file names and sentences come from anywhere."""
    return "".join(c if c in JOINERS or unicodedata.category(c)[0] != "C" else "\ufffd" for c in str(text))


def file_name(number: int, path: Path) -> str:
    """The file name for the picture that answers question `number`, about the image at `path`."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.stem)[:60]
    return f"{number:04d}_{stem}.png"
