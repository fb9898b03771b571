"""mvlm doctor [--json] [--shards FOLDER] [--run FOLDER]"""

from __future__ import annotations

import argparse
from functools import partial

EXAMPLES = """examples:
  mvlm doctor
  mvlm doctor --shards shards/train --run runs/mine
  srun -N 4 --ntasks-per-node 1 mvlm doctor --json

Takes a quarter of a minute on a free core. Each probe runs in a process and a time limit of its own, and
`python -m mvlm.check.machine.probe NAME` runs one alone. Ends with 1 where something is broken; what is absent is said
and is no fault. docs/doctor.md has more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Try what training needs of this machine, and say what works, what is absent and what is broken."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--shards", action="append", default=[], metavar="FOLDER", help="to look at; may be repeated")
    parser.add_argument("--run", dest="run_folder", default="", metavar="FOLDER", help="whose disk to try (runs/)")


def run(args: argparse.Namespace) -> int:
    """Examine and print each finding as it is known; the exit code is 1 where something is broken."""
    from mvlm.check.folders import Folders
    from mvlm.check.machine.probe import examine
    from mvlm.check.report import Report

    report = Report("doctor", tell=None if args.json else partial(print, flush=True))
    for finding in examine(Folders(tuple(args.shards), args.run_folder)):
        report.add(finding)
    print(report.as_json() if args.json else report.closing())
    return report.exit_code
