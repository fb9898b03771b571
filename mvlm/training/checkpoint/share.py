"""A rank's own part of the fp32 tensors: copied aside, and written by a thread."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch
from torch import Tensor

from mvlm.checkpoint.cut import TensorPart
from mvlm.checkpoint.layout import EMA, MOMENTS, WEIGHTS, Entry
from mvlm.checkpoint.tensors import write_tensors
from mvlm.runtime import dist
from mvlm.training.engine import Engine
from mvlm.training.zero.state import MOMENTS as KEYS

Content = dict[str, dict[str, TensorPart]]
"""Parts of tensors by title, by kind of file."""

KINDS = {"weight": WEIGHTS, EMA: EMA} | dict.fromkeys(KEYS, MOMENTS)
"""The kind of file for each tensor that an engine has of a parameter."""


class WriteFailure(NamedTuple):
    """What went wrong, and where."""

    rank: int
    error: OSError


class ShareWriter(Thread):
    """Writes this rank's files of one checkpoint.

    Args:
        unmade: why its folder could not be made, if so.
    """

    def __init__(self, partial: Path, content: Content, unmade: OSError | None) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._partial, self._content, self._unmade = partial, content, unmade
        self.entries: list[Entry] = []
        self.failure: WriteFailure | None = WriteFailure(dist.rank(), OSError("a bug, whose traceback is above"))
        self._suffix = f"{dist.rank():05d}-of-{dist.world():05d}.safetensors"

    def run(self) -> None:
        try:
            if self._unmade:
                raise self._unmade
            for kind, tensors in self._content.items():
                self.entries.append(write_tensors(self._partial / f"{kind}-{self._suffix}", tensors))
            self.failure = None
        except OSError as error:
            self.failure = WriteFailure(dist.rank(), error)


def make_folder(partial: Path) -> OSError | None:
    """Made without parents, so that a run folder that has been removed does not come back; returns what went wrong."""
    try:
        partial.parent.mkdir(exist_ok=True)
        partial.mkdir(exist_ok=True)
    except OSError as error:
        return error
    return None


class Aside:
    """CPU memory that holds this rank's part of all tensors while it is written.

    It is kept from one checkpoint to the next: getting fresh memory, a page at a time, takes longer than the copy.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Tensor] = {}

    def copy(self, engine: Engine) -> Content:
        """Copy that part; the copy before must have been written."""
        content: Content = {}
        for name, parts in engine.own_parts():
            for key, part in parts.items():
                kind, title = KINDS[key], f"{key}/{name}" if KINDS[key] == MOMENTS else name
                elements = part.elements.detach()
                copied = elements if engine.disk else self._copied(kind, title, elements)
                content.setdefault(kind, {})[title] = part._replace(elements=copied)
        return content

    def _copied(self, kind: str, title: str, elements: Tensor) -> Tensor:
        held = self._held.get((kind, title))
        if held is None or held.shape != elements.shape:
            held = self._held[kind, title] = torch.empty(elements.shape, dtype=elements.dtype, device="cpu")
        return held.copy_(elements)
