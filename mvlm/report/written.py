"""The report on run folders: what `mvlm report` and Python's `run.write_report` write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mvlm.report.facts import read_facts
from mvlm.report.measure import measure
from mvlm.report.page import render
from mvlm.runtime import dist


def report_on(runs: Sequence[Path]) -> str:
    """The page, for which is measured what is not in the folders yet.

    Raises:
        UserError: a folder is no run, or a file in it is damaged.
    """
    facts = [read_facts(folder) for folder in runs]
    return render([(of_run, measure(of_run, dist.device())) for of_run in facts], datetime.now().astimezone())
