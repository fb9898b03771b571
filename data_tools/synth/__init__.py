"""Synthetic corpora with known answers: one small world, one module per task, balanced against shortcuts.

Every task but `caption` is made of blocks. A block's rows share their images with no other block, and within it each
sentence has each answer equally often and each image has each answer equally often, so that a predictor that reads
only the text, or sees only the image, stays at the task's stated chance. The number of objects is the same on both
sides of every comparison. `tests/data_tools/test_synth_tasks.py` checks all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .blocks import SyntheticSample
from .captions import captions
from .entailment import entailment
from .foils import foils
from .pairs import pairs
from .questions import questions
from .scenes import Thing

TASKS: dict[str, Callable[[int, int, frozenset[Thing]], Iterator[SyntheticSample]]] = {
    "caption": captions,
    "vqa": questions,
    "pairs": pairs,
    "entailment": entailment,
    "foils": foils,
}
"""By name: takes a count of rows, a seed and the things held out; yields the rows in a fixed order."""

SCHEMA_OF = {"pairs": "nlvr2"} | {name: name for name in TASKS if name != "pairs"}
"""The task in the manifest, whose columns the rows have."""
