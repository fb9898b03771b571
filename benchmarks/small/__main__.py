"""Recipes for small domains, compared at equal CPU seconds on six real corpora.

python -m benchmarks.small [--corpora NAME...] [--arms NAME...] [--seeds 0 1 2] [--seconds 360] [--minutes M]
python -m benchmarks.small --table

results/cells.jsonl gets a line for each cell; one that is there is not run again, so the command resumes. After
`--minutes` it stops at the end of the current cell and exits with 75 if any are left.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.kept import add_record, read_records
from benchmarks.small import cell, ridge
from benchmarks.small.arms import ARMS
from benchmarks.small.corpora import KINDS, ROOT, prepare
from benchmarks.small.table import table
from mvlm.errors import ExitCode, UserError
from mvlm.runtime import dist

CELLS = Path(__file__).parent / "results/cells.jsonl"
RIDGE = "ridge"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--arms", nargs="+", choices=[RIDGE, *ARMS], default=[RIDGE, *ARMS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/small")
    parser.add_argument("--results", type=Path, default=CELLS)
    parser.add_argument("--table", action="store_true", help="only print the table of results")
    args = parser.parse_args(argv)
    if args.table:
        print(table(read_records(args.results)))
        return 0
    until = time.monotonic() + 60 * args.minutes
    dist.init()
    for seed, corpus, arm in product(args.seeds, args.corpora, args.arms):
        wanted = {"corpus": corpus, "arm": arm} | ({} if arm == RIDGE else {"seed": seed, "seconds": args.seconds})
        if any(wanted.items() <= line.items() for line in read_records(args.results)):
            continue
        if time.monotonic() > until:
            return ExitCode.REQUEUE
        shards = prepare(corpus, args.folder)
        if arm == RIDGE:
            found = ridge.measure(shards, args.folder)
        else:
            found = cell.measure(shards, arm, seed, args.seconds, args.folder)
        add_record(args.results, wanted | found)
        print(table(read_records(args.results)), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"small: {error}")
