"""From samples to records, which are checked and written like those of any source."""

from __future__ import annotations

from collections.abc import Iterator

from mvlm.data.shards.schema import CAPTION

from ..record import Record
from . import SCHEMA_OF, TASKS
from .blocks import SyntheticSample, novel
from .holdout import NOVEL
from .scenes import Thing, picture


def records(task: str, count: int, seed: int, held_out: frozenset[Thing]) -> Iterator[Record]:
    """The rows of one of `TASKS` with their images drawn. `fields` has what a split may go by."""
    for sample in TASKS[task](count, seed, held_out):
        of_captions = SCHEMA_OF[task] == CAPTION
        columns = sample.columns | ({"group": sample.group} if SCHEMA_OF[task] == "nlvr2" else {})
        yield Record(
            key=sample.key,
            image=picture(sample.scenes[0]),
            captions=sample.columns["captions"] if of_captions else (),
            source=f"synth-{task}",
            fields={"group": sample.group, NOVEL: novel(sample.scenes[0], held_out), "objects": _objects(sample)},
            where=f"synth seed {seed}",
            image2=picture(sample.scenes[1]) if len(sample.scenes) > 1 else b"",
            columns={} if of_captions else columns,
        )


def _objects(sample: SyntheticSample) -> int:
    return sum(thing is not None for scene in sample.scenes for thing in scene)
