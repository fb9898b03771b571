"""Parts: what one task reads and writes. They are cut from the source's own units, however many tasks there are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from mvlm.data.shards.files import Shard

Cursor = tuple[int, ...]
"""A place in a source; what is read earlier has a smaller one, and () is the beginning."""

Unit = tuple[Cursor, int]
"""The start of a piece of a source that can be read by itself, such as a tar, and roughly how many bytes it has."""


@dataclass(frozen=True)
class Part:
    """The units from `start` up to `end`, which is None for the last part."""

    number: int
    start: Cursor
    end: Cursor | None
    size: int  # bytes of input, roughly

    def __str__(self) -> str:
        return f"part {self.number}"


def cut(units: Iterable[Unit], size: int) -> list[Part]:
    """Parts of at most `size` bytes, except for units that are larger; one part if there are no units."""
    starts: list[Cursor] = [()]
    sizes = [0]
    for start, of_unit in units:
        if sizes[-1] and sizes[-1] + of_unit > size:
            starts.append(start)
            sizes.append(0)
        sizes[-1] += of_unit
    ends = [end for _, end in pairwise(starts)]
    return [Part(n, *place) for n, place in enumerate(zip(starts, [*ends, None], sizes, strict=True))]


def chosen(parts: list[Part], share: tuple[int, int]) -> list[Part]:
    """The parts of the i-th of n tasks, counted from 1."""
    task, tasks = share
    return parts[task - 1 :: tasks]


def shard_stem(part: int, number: int) -> str:
    """The name, without its ending, of a part's shard; `number` counts within the part and the split."""
    return f"{part:06d}-{number:03d}" if number else f"{part:06d}"


@dataclass
class SplitPart:
    """What a part adds to the corpus of one split."""

    rows: int = 0
    captions: int = 0
    image_bytes: int = 0
    shards: list[Shard] = field(default_factory=list)


@dataclass
class PartManifest:
    """What a finished part has made; written last of all its files."""

    number: int
    task: str
    report: dict[str, Any]
    splits: dict[str, SplitPart]
    others: dict[str, int]  # bytes of the files beside its shards, by name
    pruned: str = ""  # a hash of the rows that were taken out after it was made

    @property
    def rows(self) -> int:
        """The rows that it kept when it was made."""
        return int(self.report["kept"])

    @property
    def files(self) -> dict[str, int]:
        """Bytes of all its files by name."""
        return dict(self._shards()) | self.others

    def _shards(self) -> Iterator[tuple[str, int]]:
        for split, made in self.splits.items():
            for shard in made.shards:
                for file in shard.files:
                    yield within(split, file.file), file.bytes

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> PartManifest:
        fields = json.loads(content)
        return cls(**fields | {"splits": {name: _split(made) for name, made in fields["splits"].items()}})


def _split(content: dict[str, Any]) -> SplitPart:
    shards = [Shard(**shard | {"tables": tuple(map(tuple, shard["tables"]))}) for shard in content["shards"]]
    return SplitPart(**content | {"shards": shards})


def within(split: str, file: str) -> str:
    """A file of a split's corpus, seen from the folder of all splits."""
    return f"{split}/{file}" if split else file
