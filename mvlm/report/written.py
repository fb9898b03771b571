"""The report on run folders: what `mvlm report` and Python's `run.write_report` write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mvlm.report.facts import RunFacts
from mvlm.report.measure import measure
from mvlm.report.page import render
from mvlm.runtime import dist


def report_on(runs: Sequence[RunFacts]) -> str:
    """The page, for which is measured what is not in the folders yet; raises `UserError` if that cannot be."""
    return render([(facts, measure(facts, dist.device())) for facts in runs], datetime.now().astimezone())
