"""What became of the records and captions that were read, altogether and by source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mvlm.runtime.wording import counted

from .dedup import DUPLICATE, EXCLUDED, NEAR_DUPLICATE
from .record import Dropped

MANY_TWINS = 0.03
"""Share of the records left out as copies, beyond which somebody should check whether they are."""

MOST_SOURCES = 100
OTHERS = "(others)"
"""Sources beyond that many are counted together, so that the report stays short if each record names its own."""

COUNTERS = ("dropped", "dropped_captions", "unused")


@dataclass
class SourceReport:
    """The records of one source."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class ShardReport:
    """The counts of a whole run."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    captions: int = 0
    dropped_captions: Counter[str] = field(default_factory=Counter)  # of the records that were kept
    unused: Counter[str] = field(default_factory=Counter)  # files of the source that belong to no record
    splits: dict[str, int] = field(default_factory=dict)
    sources: dict[str, SourceReport] = field(default_factory=dict)

    def count(self, source: str, outcome: Dropped | int) -> None:
        """Count a record: dropped, or kept with so many captions."""
        if source not in self.sources and len(self.sources) >= MOST_SOURCES:
            source = OTHERS
        if source not in self.sources:
            self.sources[source] = SourceReport()
        for part in (self, self.sources[source]):
            part.read += 1
            if isinstance(outcome, Dropped):
                part.dropped[outcome.reason] += 1
            else:
                part.kept += 1
        if not isinstance(outcome, Dropped):
            self.captions += outcome

    def take_back(self, source: str, captions: int, caption_drops: Iterable[str], reason: str) -> None:
        """Count a record as dropped after all that was counted as kept with so many captions and without others."""
        for part in (self, self.sources[source if source in self.sources else OTHERS]):
            part.kept -= 1
            part.dropped[reason] += 1
        self.captions -= captions
        self.dropped_captions -= Counter(caption_drops)

    def add(self, other: ShardReport) -> None:
        """Count what another part has counted."""
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.read += other.read
        self.kept += other.kept
        self.captions += other.captions
        for name, of_it in other.sources.items():
            known = name in self.sources or len(self.sources) < MOST_SOURCES
            mine = self.sources.setdefault(name if known else OTHERS, SourceReport())
            mine.read += of_it.read
            mine.kept += of_it.kept
            mine.dropped.update(of_it.dropped)

    def as_dict(self) -> dict[str, Any]:
        counters = {name: _sorted(getattr(self, name)) for name in COUNTERS}
        sources = {name: vars(s) | {"dropped": _sorted(s.dropped)} for name, s in sorted(self.sources.items())}
        return vars(self) | counters | {"sources": sources}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ShardReport:
        sources = {
            name: SourceReport(s["read"], s["kept"], Counter(s["dropped"])) for name, s in content["sources"].items()
        }
        counters = {name: Counter(content.get(name, {})) for name in COUNTERS}
        return cls(**content | counters | {"sources": sources})

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1) + "\n"

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"read {counted(self.read, 'record')}, kept {self.kept:,} with {counted(self.captions, 'caption')}"]
        for verb, what, counter in (
            ("dropped", "record", self.dropped),
            ("dropped", "caption", self.dropped_captions),
            ("left unused", "file", self.unused),
        ):
            if counter:
                listed = ", listed in quarantine.jsonl" if counter is self.dropped else ""
                lines.append(f"{verb} {counted(counter.total(), what)}{listed}:")
                lines += [f"  {count:>9,}  {reason}" for reason, count in _by_count(counter)]
        if len(self.sources) > 1:
            lines.append("by source:")
            for name, part in sorted(self.sources.items()):
                line = f"  {name or '(none given)'}: kept {part.kept:,} of {part.read:,}"
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in _by_count(part.dropped))
                lines.append(f"{line} ({reasons})" if reasons else line)
        lines += [f"{name}: {counted(rows, 'record')}" for name, rows in self.splits.items()]
        return "\n".join(lines)

    def text(self) -> str:
        """The summary as the text of a file, with the warning if there is one."""
        return "".join(f"{part}\n" for part in (self.summary(), self.warning()) if part)

    def warning(self) -> str:
        """A sentence if so many records were left out as copies that somebody should look, else ""."""
        copies = sum(self.dropped[reason] for reason in (DUPLICATE, NEAR_DUPLICATE, EXCLUDED))
        if copies <= MANY_TWINS * self.read:
            return ""
        return (
            f"WARNING: {copies:,} of {self.read:,} records ({copies / self.read:.0%}) were left out as copies of other "
            "images: look at some of them in quarantine.jsonl, which names the image that each is a copy of."
        )


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))


def _by_count(counter: Counter[str]) -> list[tuple[str, int]]:
    """Most first; equal counts by name, because a restart counts in another order."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
