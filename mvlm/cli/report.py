"""Write one self-contained HTML file about a run, or about several side by side.

examples:
  mvlm report runs/tiny
  mvlm report runs/all_losses runs/itc_only --out compare.html

Numbers come from retrieval.json and reconstruction.json in the run folder if `mvlm evaluate --json` has written them
there; otherwise they are measured on the run's data.eval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mvlm.cli.output import write_whole
from mvlm.cli.places import require_no_checkpoint
from mvlm.report.facts import read_facts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page to write (default: report.html in the first run)"
    )


def run(args: argparse.Namespace) -> int:
    """Read, measure what is missing, and write the page; returns the exit code.

    Raises:
        UserError: a folder is not a run's, a file in it is damaged, or the page cannot be written.
    """
    require_no_checkpoint(*args.runs)
    facts = [read_facts(folder) for folder in args.runs]  # before imports that take seconds

    from mvlm.report.written import report_on

    out = args.out or args.runs[0] / "report.html"
    write_whole(out, report_on(facts), "--out")
    print(f"Written to {out}")
    return 0
