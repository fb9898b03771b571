"""What a restart needs to know: states, each written once the shard it speaks of is on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mvlm.data.shards.schema import Shard

from .record import Dropped, Record

LIBRARIES = ("pyarrow", "pillow", "simplejpeg", "numpy")
"""Their versions decide the bytes written, as does the code beside this file."""

Item = Record | Dropped


class Changed(Exception):
    """The source no longer gives the records that the killed run read."""


@dataclass
class State:
    """How far a run is when one of its shards is finished; what is new since the state before, or the sums so far.

    The records of the shards under way are read again after a restart, those of finished shards never.
    """

    consumed: int  # records, so far
    digest: str  # hash of the names and sizes of those
    task: str
    report: dict[str, Any]  # so far
    split: str
    shard: Shard  # the new one, of that split
    finished: tuple[int, int, int]  # rows, captions, image bytes of that split's finished shards
    pending: dict[str, list[int]]  # by split: the numbers of the records of its shard under way
    quarantine: list[str]  # new lines

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> State:
        fields = json.loads(content)
        changed = {"shard": Shard(**fields["shard"]), "finished": tuple(fields["finished"])}
        return cls(**fields | changed)


@dataclass
class SourceDigest:
    """A running hash over the records read, by which a source that changed is found out."""

    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, item: Item) -> None:
        size = len(item.image) if isinstance(item, Record) else -1
        self._hash.update(f"{item.key}\0{item.where}\0{size}\0".encode("utf-8", "surrogatepass"))

    def __str__(self) -> str:
        return str(self._hash.hexdigest())


@dataclass(frozen=True)
class Replayed:
    """A record of a finished run's unfinished shard: decided upon already, and to be written to that split."""

    record: Record
    split: str
    number: int


def replayed(records: Iterable[Item], state: State | None, digest: SourceDigest) -> Iterator[Item | Replayed]:
    """Of the records consumed before `state` only those of shards that were under way, then all others.

    Raises:
        Changed: the records before the state are not those it was made of.
    """
    split_of = {n: split for split, numbers in state.pending.items() for n in numbers} if state else {}
    end = state.consumed if state else 0
    number = 0
    for number, item in enumerate(records, 1):
        if number > end:
            yield item
            continue
        digest.add(item)
        if number == end and state and str(digest) != state.digest:
            raise Changed
        if number - 1 in split_of:
            if not isinstance(item, Record):
                raise Changed
            yield Replayed(item, split_of[number - 1], number - 1)
    if number < end:
        raise Changed


def versions() -> dict[str, str]:
    """Of the libraries and of this package's code."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return {name: version(name) for name in LIBRARIES} | {"code": code.hexdigest()}
