"""Whether the data sets are laid out as expected, and how much there is of each."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.errors import UserError
from mvlm.reproduce.corpora import CORPORA, in_order
from mvlm.reproduce.steps import DATA_TOOLS, Workplace
from mvlm.reproduce.tables import Table


@dataclass(frozen=True)
class Counted:
    """What a corpus's source contains, beside the published numbers (0 = not in our sources)."""

    name: str
    rows: int
    pairs: int
    dropped: dict[str, int]
    published_rows: int
    published_pairs: int
    said_by: str


def missing(table: Table, place: Workplace) -> list[Path]:
    """Files and folders of the data sets that the table needs and that do not exist."""
    needed = dict.fromkeys(file for name in in_order(table.shards) for file in CORPORA[name].files)
    return [place.data / file for file in needed if not (place.data / file).exists()]


def counted(table: Table, place: Workplace, ask: Callable[[list[str]], str]) -> Iterator[Counted]:
    """The counts of each data set that exists, in the order of the chain.

    Args:
        ask: runs a command and returns what it prints.

    Raises:
        UserError: an annotation file cannot be read.
    """
    for name in in_order(table.shards):
        corpus = CORPORA[name]
        if not corpus.source or not all((place.data / file).exists() for file in corpus.files):
            continue
        said: dict[str, Any] = json.loads(ask([*DATA_TOOLS, "count", *place.fill(corpus.source), "--json"]))
        yield Counted(name, said["rows"], said["pairs"], said["dropped"], corpus.rows, corpus.pairs, corpus.said_by)


def ask(words: list[str]) -> str:
    """Run a command and return its output; its stderr is ours."""
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"Counting failed with exit code {done.returncode}, as said above: fix that file.")
    return done.stdout
