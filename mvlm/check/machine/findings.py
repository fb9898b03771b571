"""What a probe says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["works", "absent", "broken"]


@dataclass(frozen=True)
class Options:
    """What the user asked to have looked at."""

    shards: tuple[str, ...] = ()
    run: str = ""  # folder; "" = where a run would make one, in the current folder


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
        subject: a word or two.
        state: absent = not there, and nothing needs it as things are.
        says: a sentence's first half, without a stop.
        remedy: its second half, what to do; "" where nothing is to be done.
        facts: numbers and versions, for programs.
    """

    subject: str
    state: State
    says: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.says}: {self.remedy}." if self.remedy else f"{self.says}."


def works(subject: str, says: str, facts: dict[str, Any] | None = None) -> Finding:
    return Finding(subject, "works", says, facts=facts or {})


def absent(subject: str, says: str, remedy: str = "", facts: dict[str, Any] | None = None) -> Finding:
    """`remedy`: what to do to have it."""
    return Finding(subject, "absent", says, remedy, facts or {})


def broken(subject: str, says: str, remedy: str, facts: dict[str, Any] | None = None) -> Finding:
    return Finding(subject, "broken", says, remedy, facts or {})


def first_line(error: BaseException | str) -> str:
    """Of an error's text, or its kind where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
