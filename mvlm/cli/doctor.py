"""mvlm doctor [--json] [--shards FOLDER] [--run FOLDER]"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

EXAMPLES = """examples:
  mvlm doctor
  mvlm doctor --shards shards/train --run runs/mine
  srun -N 4 --ntasks-per-node 1 mvlm doctor --json

Takes a quarter of a minute on a free core. Each probe runs in a process and a time limit of its own, and
`python -m mvlm.check.machine.probe NAME` runs one alone. Ends with 1 where something is broken; what is absent is said
and is no fault. docs/doctor.md has more.
"""


def add_parser(subparsers: argparse._SubParsersAction, does: str) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help=does,
        description="Try what training needs of this machine, and say what works, what is absent and what is broken.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--shards", action="append", default=[], metavar="FOLDER", help="to look at; may be repeated")
    parser.add_argument("--run", dest="run_folder", default="", metavar="FOLDER", help="whose disk to try (runs/)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine and print each finding as it is known; the exit code is 1 where something is broken."""
    from mvlm.check.machine.examine import examine
    from mvlm.check.machine.findings import Options
    from mvlm.errors import UserError

    findings = []
    for finding in examine(Options(tuple(args.shards), args.run_folder)):
        findings.append(finding)
        if not args.json:
            print(f"{finding.state:7} {finding.subject:13} {finding}", flush=True)
    counts = {state: sum(one.state == state for one in findings) for state in ("works", "absent", "broken")}
    if args.json:
        print(json.dumps(counts | {"findings": [asdict(one) for one in findings]}, indent=1))
    else:
        print(f"doctor: {counts['works']} work, {counts['absent']} absent, {counts['broken']} broken")
    return UserError.exit_code if counts["broken"] else 0
