"""The paper's claim put to the test: `run` trains and measures the grid's cells, `table` draws what there is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.claim.corpora import BUNDLED, ROOT
from mvlm.errors import ExitCode

CELLS = Path(__file__).parent / "results/cells.jsonl"
EXAMPLES = """examples:
  python -m benchmarks.claim run --core
  python -m benchmarks.claim run --seeds 0 1 2 --corpus scenes --only scenes/all scenes/hide_both
  python -m benchmarks.claim run --corpus coco=shards/coco --size gpu
  python -m benchmarks.claim run --jobs slurm --job cluster/slurm.toml --corpus coco=shards/coco --size gpu --dry-run
  python -m benchmarks.claim table

Start the same command again to resume; start it twice at the same time to use two cores: the two share the cells.
"""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "python -m benchmarks.claim", description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="train and measure cells, seed by seed", epilog=EXAMPLES, formatter_class=raw)
    run.add_argument("--core", action="store_true", help="all four losses against ITC + ITM alone")
    run.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED", help="seeds of each cell (0 1 2 3 4)"
    )
    run.add_argument(
        "--corpus",
        nargs="+",
        default=list(BUNDLED),
        metavar="NAME[=SHARDS]",
        help=f"{', '.join(BUNDLED)}, or NAME=SHARDS, or NAME=ARCHIVE,ARCHIVE of captioned pictures",
    )
    run.add_argument("--only", nargs="+", default=[], metavar="CELL", help="cells whose names begin like scenes/all/10")
    run.add_argument(
        "--tune",
        choices=("retrieval", "vqa"),
        nargs="+",
        default=[],
        help="fine-tune the ablation's cells, and the core's with a tenth of the pairs",
    )
    run.add_argument("--size", choices=("small", "gpu", "paper"), default="small", help="size of the models (small)")
    run.add_argument("--jobs", choices=("local", "slurm", "ray"), default="local", help="where training runs")
    run.add_argument("--job", default="", metavar="JOB.toml", help="job file of `python -m cluster`, for slurm and ray")
    run.add_argument("--folder", type=Path, default=ROOT / "runs/claim", help="for corpora and training runs")
    run.add_argument("--results", type=Path, default=CELLS, metavar="FILE", help="where to add a line for each cell")
    run.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="overrides for every cell",
    )
    run.add_argument("--dry-run", action="store_true", help="print what would be run")
    run.set_defaults(command="run")
    table = commands.add_parser("table", help="draw the table and the plots")
    table.add_argument("--results", type=Path, default=CELLS, metavar="FILE")
    table.add_argument("--folder", type=Path, default=ROOT / "runs/claim", help="of training runs, for reconstructions")
    table.set_defaults(command="table")
    hours = commands.add_parser("hours", help="GPU-hours of the paper's own runs, from its model's operations")
    hours.add_argument("--tflops", type=float, default=312, help="a card's peak in bf16 (default: an A100's 312)")
    hours.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak reached (0.4)")
    hours.set_defaults(command="hours")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0 if done, 1 for a user's mistake, 75 if stopped and saved, 130 if interrupted."""
    args = parser().parse_args(argv)
    from mvlm.errors import UserError

    try:
        if args.command == "hours":
            from benchmarks.claim.cost import gpu_hours

            print(gpu_hours(args.tflops, args.mfu))
            return 0
        if args.command == "table":
            from benchmarks.claim.table import draw

            return draw(args.results, args.folder)
        from benchmarks.claim.run import run

        return run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
