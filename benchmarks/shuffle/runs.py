"""A corpus as a crawl of albums, pages or videos leaves it: runs of rows that show and say almost the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.claim.world import scenes
from data_tools.pipeline import Options
from data_tools.record import Record
from data_tools.sharding import shard
from data_tools.synth.scenes import CELLS, Scene, draw, png, scene_key
from mvlm.data.shards.mixture import Mixture

PHRASES = ("{}", "a page with {}", "{} on a page", "again {}")
"""Captions of the four pictures of a scene: the same things in other words, so that each is true of all four."""


def write_runs(parts: Sequence[str], out: Path) -> Path:
    """Shards of the scenes in these parts, each a run of near-duplicates; those that share most are side by side."""
    if not out.exists():
        mixture = Mixture(parts)
        wanted = {mixture.row(row).key for row in range(len(mixture))}
        making = out.with_name(f"{out.name}.making-{os.getpid()}")
        chosen = sorted((scene for scene in scenes() if scene_key(scene) in wanted), key=scene_key)
        shard(records(chosen), making, Options(workers=1))
        try:
            os.rename(making, out)
        except OSError:  # another process was first
            shutil.rmtree(making)
    return out


def records(chosen: Sequence[Scene]) -> Iterator[Record]:
    for scene in chosen:
        for number, phrase in enumerate(PHRASES):
            yield Record(
                key=f"{scene_key(scene)}/{number}",
                image=png(_moved(draw(scene), right=number & 1, down=number >> 1)),
                captions=[phrase.format(_described(scene, number))],
                source="shuffle-runs",
            )


def _described(scene: Scene, first: int) -> str:
    """The things of a scene, each with its colour, shape and place, beginning with thing `first`."""
    things = [f"{thing[0]} {thing[1]} {cell}" for thing, cell in zip(scene, CELLS, strict=True) if thing]
    first %= len(things)
    return ", ".join(things[first:] + things[:first])


def _moved(pixels: list[bytes], right: int, down: int) -> list[bytes]:
    """The picture moved by so many pixels, wrapping around."""
    shifted = [row[len(row) - 3 * right :] + row[: len(row) - 3 * right] for row in pixels]
    return shifted[len(shifted) - down :] + shifted[: len(shifted) - down]
