"""Scores a corpus by any number of processes, each with a share of its shards.

Each shard is scored by itself, in batches of its own rows and with masks drawn by their numbers in it, so that the
scores do not depend on who scores the others.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.staging import StagedTables
from mvlm.errors import UserError
from mvlm.evaluate.scores import Scorer


def score_part(
    scorer: Scorer,
    folder: str | Path,
    part: int = 0,
    parts: int = 1,
    on_rows: Callable[[int], object] = lambda rows: None,
    cache: Cache | None = None,
) -> tuple[int, int]:
    """Score every `parts`-th shard of a folder, or a URL, from number `part` on, except those with these scores.

    Returns:
        How many shards have no scores by these weights yet, which other parts have still to give, and how many there
        are.

    Raises:
        UserError: the corpus is missing or damaged, or cannot be written to.
    """
    cache = cache or Cache()
    staged = StagedTables(folder, scorer.names, scorer.made_by, cache)
    mixture = Mixture([folder], cache=cache, trains=True)
    rows = staged.location.manifest.shards.rows
    starts = list(accumulate(rows, initial=0))
    for number in staged.missing():
        if number % parts == part:
            staged.add(number, scorer.tables(mixture, starts[number], rows[number], on_rows))
    return staged.finish(), len(rows)


def parse_part(text: str) -> tuple[int, int]:
    """Parse `i/n`, with i from 1 to n as in `data_tools shard`, into i - 1 and n."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part {text} is not a part: give i/n with i from 1 to n, such as 1/8.")
    return int(number) - 1, int(count)
