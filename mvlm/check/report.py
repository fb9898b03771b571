"""What a check found, a sentence for each thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from mvlm.errors import UserError

Verdict = Literal["right", "wrong", "warning", "unknown"]
SHOWN = 20
"""Sentences of one topic and verdict that are printed; a report has all of them."""


@dataclass(frozen=True)
class Finding:
    topic: str
    verdict: Verdict  # warning: it can be done and is hardly meant; unknown: it could not be checked here
    sentence: str


class Report:
    """Findings in the order in which they were made; what is said twice counts once."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def right(self, topic: str, sentence: str) -> None:
        self._add(Finding(topic, "right", sentence))

    def wrong(self, topic: str, *sentences: str) -> None:
        for sentence in sentences:
            if sentence not in self.problems:
                self._add(Finding(topic, "wrong", sentence))

    def warning(self, topic: str, sentence: str) -> None:
        self._add(Finding(topic, "warning", sentence))

    def unknown(self, topic: str, sentence: str) -> None:
        self._add(Finding(topic, "unknown", sentence))

    @contextmanager
    def judged(self, topic: str) -> Iterator[None]:
        """Take down the mistakes that end the block."""
        try:
            yield
        except UserError as error:
            self.wrong(topic, *error.sentences)

    @property
    def problems(self) -> list[str]:
        return [finding.sentence for finding in self.findings if finding.verdict == "wrong"]

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)


def as_text(report: Report) -> str:
    """A line a finding, and how many there are of each verdict."""
    lines: list[str] = []
    counts: dict[tuple[str, str], int] = {}
    for finding in report.findings:
        kind = finding.topic, finding.verdict
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= SHOWN:
            lines.append(f"{finding.verdict:8} {finding.topic:10} {finding.sentence}")
    for (topic, verdict), count in counts.items():
        if count > SHOWN:
            lines.append(f"{verdict:8} {topic:10} {count - SHOWN} more of the kind, which --json lists.")
    totals = {v: sum(finding.verdict == v for finding in report.findings) for v in get_args(Verdict)}
    lines.append(f"check: {', '.join(f'{count} {verdict}' for verdict, count in totals.items())}")
    return "\n".join(lines)
