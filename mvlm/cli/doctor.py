"""Test what training needs from this machine, and report what works, what is absent and what is broken.

examples:
  mvlm doctor
  mvlm doctor --shards shards/train --run runs/mine
  srun -N 4 --ntasks-per-node 1 mvlm doctor --json

Takes about 15 seconds on an idle core. Each probe has its own process and time limit;
`python -m mvlm.check.machine.probe NAME` runs one alone. Exits with 1 if something is broken; what is absent is
reported but is not a fault. More in docs/doctor.md.
"""

from __future__ import annotations

import argparse
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument(
        "--shards", action="append", default=[], metavar="FOLDER", help="shards to test; may be repeated"
    )
    parser.add_argument(
        "--run", dest="run_folder", default="", metavar="FOLDER", help="test this folder's disk (default: runs/)"
    )


def run(args: argparse.Namespace) -> int:
    """Test, and print each finding as soon as it is made; the exit code is 1 if something is broken."""
    from mvlm.check.folders import Folders
    from mvlm.check.machine.probe import examine
    from mvlm.check.report import Report

    report = Report("doctor", tell=None if args.json else partial(print, flush=True))
    for finding in examine(Folders(tuple(args.shards), args.run_folder)):
        report.add(finding)
    print(report.as_json() if args.json else report.closing())
    return report.exit_code
