"""What a check found, a sentence for each thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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
    """Findings in the order in which they were made; what is said twice counts once.

    Args:
        tell: called with a line for each finding as it is made; of a topic and verdict with the first `SHOWN`.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.findings: list[Finding] = []
        self._tell = tell
        self._counts: Counter[tuple[str, str]] = Counter()

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
        self._counts[finding.topic, finding.verdict] += 1
        if self._tell and self._counts[finding.topic, finding.verdict] <= SHOWN:
            self._tell(f"{finding.verdict:8} {finding.topic:10} {finding.sentence}")

    def closing(self) -> str:
        """What was not told of a topic and verdict, and how many findings there are of each verdict."""
        lines = [
            f"{verdict:8} {topic:10} {count - SHOWN} more of the kind, which --json lists."
            for (topic, verdict), count in self._counts.items()
            if count > SHOWN
        ]
        totals = Counter(finding.verdict for finding in self.findings)
        return "\n".join([*lines, f"check: {', '.join(f'{totals[name]} {name}' for name in get_args(Verdict))}"])
