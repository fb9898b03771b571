"""The campaign of docs/claim2.md: five arms on icons, matched by measured time, and again on a synthetic world.

python -m benchmarks.claim2 run --size small       # about 18 hours of one thread
python -m benchmarks.claim2 run --size gpu         # planned for 25 minutes of one H100
python -m benchmarks.claim2 plan --size gpu        # the arithmetic behind that
python -m benchmarks.claim2 run --size rehearse    # three minutes; shows that it runs to the end
python -m benchmarks.claim2 table --size small

The same command resumes; started twice, the two share the cells. It refuses to run code that is not committed, and
keeps a line for each cell in results/SIZE/COMMIT/cells.jsonl.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claim2.plan import SIZES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.claim2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "plan", "table"))
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--shards", type=Path, default=Path("shards/icons"), help="made by examples/icons/make.sh")
    parser.add_argument("--folder", type=Path, default=Path("runs/claim2"), help="for training runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    from mvlm.errors import ExitCode, UserError

    try:
        return {"run": _run, "plan": _plan, "table": _table}[args.command](args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    from benchmarks.claim2.campaign import Campaign, code_commit, run
    from benchmarks.claim2.table import summary

    results, size = _results(args), SIZES[args.size]
    commit = code_commit(results)
    campaign = Campaign(size, args.shards, args.folder / size.name / commit, results / commit)
    if size.processes > 1 and not args.worker:
        words = [sys.executable, "-m", "benchmarks.claim2", *(sys.argv[1:]), "--worker"]
        workers = [subprocess.Popen(words) for _ in range(size.processes)]
        code = max(worker.wait() for worker in workers)
    else:
        code = run(campaign)
    if not args.worker and code == 0:
        print(summary(campaign))
    return code


def _plan(args: argparse.Namespace) -> int:
    from benchmarks.claim2.budget import describe

    print(describe(SIZES[args.size]))
    return 0


def _table(args: argparse.Namespace) -> int:
    from benchmarks.claim2.campaign import Campaign
    from benchmarks.claim2.table import summary
    from mvlm.errors import UserError

    folders = sorted(_results(args).glob("*/"))
    if not folders:
        raise UserError(f"{_results(args)} has no cells: run `python -m benchmarks.claim2 run --size {args.size}`.")
    for folder in folders:
        print(f"Code of {folder.name}\n\n{summary(Campaign(SIZES[args.size], args.shards, args.folder, folder))}")
    return 0


def _results(args: argparse.Namespace) -> Path:
    """A rehearsal's results are not kept with the evidence."""
    from benchmarks.claim2.campaign import RESULTS

    folder: Path = args.folder / "results" if args.size == "rehearse" else RESULTS
    return folder / args.size


if __name__ == "__main__":
    sys.exit(main())
