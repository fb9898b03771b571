"""`python -m mvlm.check.machine.probe NAME`: one probe in this process, its findings as JSON on standard output."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
from dataclasses import asdict

from mvlm.check.machine.findings import Options
from mvlm.check.machine.registry import PROBES


def main(argv: list[str] | None = None) -> int:
    """Run it; whatever libraries print goes to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m mvlm.check.machine.probe", description="Run one probe of mvlm doctor."
    )
    parser.add_argument("name", choices=PROBES)
    parser.add_argument("--shards", action="append", default=[])
    parser.add_argument("--run", default="")
    args = parser.parse_args(argv)
    faulthandler.enable()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found = [asdict(finding) for finding in PROBES[args.name].find(Options(tuple(args.shards), args.run))]
    with answer:
        json.dump(found, answer)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries that were probed may hang in their own endings
