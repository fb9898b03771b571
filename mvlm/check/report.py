"""The findings of `mvlm check`, `mvlm doctor` and `mvlm preflight`, a sentence each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from mvlm.errors import ExitCode, UserError

Verdict = Literal["right", "wrong", "warning", "unknown", "works", "absent", "broken"]
FAULTS = ("wrong", "broken")
SHOWN = 20
"""Sentences printed for each topic and verdict; --json lists all of them."""


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        topic: a word or two.
        verdict: warning = possible, but hardly intended; unknown = could not be checked here; absent = missing, but
            not needed as things are.
        sentence: what and where and, after a colon, what to do.
        remedy: that last part, if it is known separately.
        facts: numbers and versions, for programs.
    """

    topic: str
    verdict: Verdict
    sentence: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def says(self) -> str:
        """The sentence without its remedy and its full stop."""
        return self.sentence.removesuffix(f": {self.remedy}." if self.remedy else ".")


def _finding(verdict: Verdict, topic: str, says: str, remedy: str = "", facts: dict[str, Any] | None = None) -> Finding:
    return Finding(topic, verdict, f"{says}: {remedy}." if remedy else f"{says}.", remedy, facts or {})


works = partial(_finding, "works")
absent = partial(_finding, "absent")
broken = partial(_finding, "broken")
"""Each takes a topic, what to say without a full stop, what to do (absent: to have it), and facts."""


def broken_by(topic: str, sentence: str) -> Finding:
    """Something broken, from a whole sentence; its remedy is what follows the last colon."""
    return Finding(topic, "broken", sentence, sentence.rstrip(".").rpartition(": ")[2])


@dataclass(frozen=True)
class Form:
    """How a command shows its findings.

    Attributes:
        verdicts: in the order of the totals.
        width: of the longest topic.
        keys: those of a finding in JSON, each with the attribute that it holds.
    """

    verdicts: tuple[Verdict, ...]
    width: int
    keys: Mapping[str, str]


FORMS = {
    "check": Form(
        ("right", "wrong", "warning", "unknown"),
        len("checkpoint"),
        {"topic": "topic", "verdict": "verdict", "sentence": "sentence"},
    ),
    "doctor": Form(
        ("works", "absent", "broken"),
        len("shared memory"),
        {"subject": "topic", "state": "verdict", "says": "says", "remedy": "remedy", "facts": "facts"},
    ),
    "preflight": Form(("wrong",), len("nodes"), {"sentence": "sentence"}),
}


class Report:
    """Findings in the order in which they were made; a fault that is found twice counts once.

    Args:
        command: whose report it is.
        tell: called with a line for each finding as it is made, for the first `SHOWN` of a topic and verdict.
    """

    def __init__(self, command: str, tell: Callable[[str], None] | None = None) -> None:
        self.findings: list[Finding] = []
        self._command, self._form, self._tell = command, FORMS[command], tell
        self._counts: Counter[tuple[str, Verdict]] = Counter()

    def add(self, finding: Finding) -> None:
        if finding.verdict in FAULTS and finding.sentence in self.problems:
            return
        self.findings.append(finding)
        kind = finding.topic, finding.verdict
        self._counts[kind] += 1
        if self._tell and self._counts[kind] <= SHOWN:
            self._tell(self._line(*kind, finding.sentence))

    def right(self, topic: str, sentence: str) -> None:
        self.add(Finding(topic, "right", sentence))

    def wrong(self, topic: str, *sentences: str) -> None:
        for sentence in sentences:
            self.add(Finding(topic, "wrong", sentence))

    def warning(self, topic: str, sentence: str) -> None:
        self.add(Finding(topic, "warning", sentence))

    def unknown(self, topic: str, sentence: str) -> None:
        self.add(Finding(topic, "unknown", sentence))

    @contextmanager
    def judged(self, topic: str) -> Iterator[None]:
        """Record a `UserError` that ends the block."""
        try:
            yield
        except UserError as error:
            self.wrong(topic, *error.sentences)

    @property
    def problems(self) -> list[str]:
        """The sentences of all faults."""
        return [finding.sentence for finding in self.findings if finding.verdict in FAULTS]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.MISTAKE if self.problems else ExitCode.DONE

    def closing(self) -> str:
        """How many lines of each topic and verdict were left out, and the totals by verdict."""
        lines = [
            self._line(topic, verdict, f"{count - SHOWN} more of this kind, which --json lists.")
            for (topic, verdict), count in self._counts.items()
            if count > SHOWN
        ]
        totals = (f"{count} {verdict.removesuffix('s')}" for verdict, count in self._totals().items())
        return "\n".join([*lines, f"{self._command}: {', '.join(totals)}"])

    def as_json(self) -> str:
        """The totals and every finding."""
        findings = [{key: getattr(one, name) for key, name in self._form.keys.items()} for one in self.findings]
        return json.dumps({"problems": len(self.problems), **self._totals(), "findings": findings}, indent=1)

    def _totals(self) -> dict[str, int]:
        found = Counter(finding.verdict for finding in self.findings)
        return {verdict: found[verdict] for verdict in self._form.verdicts}

    def _line(self, topic: str, verdict: Verdict, sentence: str) -> str:
        longest = max(map(len, self._form.verdicts))
        return f"{verdict:{longest + 1}} {topic:{self._form.width}} {sentence}"
