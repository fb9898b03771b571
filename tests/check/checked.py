"""Check a run as `mvlm check` does."""

from __future__ import annotations

from collections.abc import Sequence

from mvlm.check.everything import check_given
from mvlm.check.reading import read_run
from mvlm.check.report import Report


def check_run(toml: str, words: Sequence[str], deepspeed: str | None, world: int, deep: bool) -> Report:
    report = Report("check")
    check_given(report, read_run(report, toml, words, deepspeed, deep), world, deep)
    return report
