"""The report on run folders, as written by `mvlm report` and by `run.write_report` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mvlm.report.facts import RunFacts
from mvlm.report.measure import measure
from mvlm.report.page import render
from mvlm.runtime import dist


def report_on(runs: Sequence[RunFacts]) -> str:
    """The page, after measuring what is not in the folders yet; raises `UserError` if that fails."""
    return render([(facts, measure(facts, dist.device())) for facts in runs], datetime.now().astimezone())
