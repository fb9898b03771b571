"""What a source offers before anything is sharded: its rows, their captions, and missing images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mvlm.runtime.wording import counted

from ..filters import clean_captions, no_caption
from ..readers.annotated import Annotated
from ..readers.img2dataset import Img2datasetSource
from ..readers.source import Source
from ..readers.urls import UrlSource
from ..record import Dropped


@dataclass
class Count:
    """`pairs` counts each row once per caption, or once if it is of another task; `dropped` counts by reason."""

    rows: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "pairs": self.pairs, "dropped": dict(self.dropped.most_common())}

    def __str__(self) -> str:
        lost = "".join(f"; {reason}: {count:,}" for reason, count in self.dropped.most_common())
        return f"{counted(self.rows, 'row')}, {counted(self.pairs, 'pair')}{lost}"


def count(source: Source, advance: Callable[[int], None] = lambda rows: None) -> Count:
    """Read the annotations, and no image if the source can do without; only `shard` finds what is wrong in one."""
    found = Count()
    records = source.outline() if isinstance(source, Annotated | Img2datasetSource | UrlSource) else iter(source)
    for item in records:
        advance(0)
        if isinstance(item, Dropped):
            found.dropped[item.reason] += 1
            continue
        kept, drops = clean_captions(item.captions)
        captions = 1 if item.columns else len(kept)
        found.rows += captions > 0
        found.pairs += captions
        if not captions:
            found.dropped[no_caption(drops)] += 1
    return found
