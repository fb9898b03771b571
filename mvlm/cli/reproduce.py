"""Reproduce a table of the paper, from the downloaded data sets to its numbers beside the published ones.

examples:
  mvlm reproduce list
  mvlm reproduce ablation --miniature --out rehearsal
  mvlm reproduce flickr30k --data /data --dry-run
  mvlm reproduce flickr30k --data /data --out /scratch/mine --launch "deepspeed --num_gpus 8 --module mvlm"
  mvlm reproduce ablation --data /data --launch "torchrun --nproc-per-node 8 -m mvlm" train.micro_batch=auto run.seed=1

Prints the chain of commands (shard, train, fine-tune, evaluate) and runs those that are not done yet: the same command
resumes, and tables share their runs. --dry-run only lists what is missing from the data folder, compares the counts of
the rest with the published numbers, and estimates the GPU-hours of each run. --miniature generates all data sets and
trains tiny models, in minutes and without a GPU. Overrides (key=value) apply to every training run; each run.seed has
separate run folders. docs/reproduce.md shows the layout of the data folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as Drawn

from mvlm.errors import UserError
from mvlm.reproduce.tables import TABLES
from mvlm.runtime.arguments import command_words

if TYPE_CHECKING:
    from mvlm.reproduce.cost import Prices
    from mvlm.reproduce.steps import Workplace
    from mvlm.reproduce.tables import Table
    from mvlm.runtime.chain import ChainStep

LIST = "list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvlm reproduce list | TABLE [--data FOLDER] [--out FOLDER] [--dry-run] [options] [key=value ...]"
    parser.add_argument("table", choices=[LIST, *TABLES], metavar="TABLE", help=f"{LIST}, {', '.join(TABLES)}")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="FOLDER", help="the data sets (default: data)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="FOLDER",
        help="for shards, runs and results (default: runs/reproduce)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and count the data, and run nothing")
    parser.add_argument("--miniature", action="store_true", help="rehearse: generated data sets and tiny models")
    parser.add_argument(
        "--launch",
        type=command_words,
        default=[],
        metavar="WORDS",
        help="launcher of the commands (default: 'deepspeed --quiet --module mvlm', with --miniature 'python -m mvlm')",
    )
    parser.add_argument(
        "--deepspeed_config",
        default="",
        metavar="JSON",
        help="(default: ds_configs/zero1.json, with --miniature ds_configs/cpu.json)",
    )
    parser.add_argument("--gpu", default="a100", metavar="NAME", help="card to estimate GPU-hours for (default: a100)")
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Print the steps, run them, and print the table; returns the exit code.

    Raises:
        UserError: data are missing, or a step failed.
    """
    from mvlm.cli.output import write_whole
    from mvlm.reproduce import results
    from mvlm.reproduce.steps import chain
    from mvlm.runtime.chain import execute, run_chain
    from mvlm.runtime.commands import shown

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if args.table == LIST:
        return _list(console)
    table, place = TABLES[args.table], _place(args)
    _check_out(place)
    steps = chain(table, place)
    if not args.dry_run:
        _check_data(table, place, steps)
    _print_chain(steps, None if place.miniature else _prices(args.gpu, place))
    if args.dry_run:
        return 0 if place.miniature else _dry_run(table, place, console)
    code = run_chain(steps, execute, shown)
    found, said = results.numbers(table, place), results.notes(table, place)
    console.print(results.draw(table, found))
    for sentence in said:
        console.print(f"- {sentence}", markup=False)
    out = place.table(args.table)
    write_whole(out, results.as_json(table, found, said), "--out")
    print("Written: " + ", ".join(map(str, [out, *results.figures(table, place)])))
    return code


def _place(args: argparse.Namespace) -> Workplace:
    from mvlm.reproduce.steps import Workplace

    small: bool = args.miniature
    launch = args.launch or ([sys.executable, "-m", "mvlm"] if small else ["deepspeed", "--quiet", "--module", "mvlm"])
    deepspeed = args.deepspeed_config or f"ds_configs/{'cpu' if small else 'zero1'}.json"
    data = args.out / "data" if small else args.data
    return Workplace(data, args.out, tuple(launch), deepspeed, tuple(args.overrides), small)


def _prices(gpu: str, place: Workplace) -> Prices:
    from mvlm.reproduce.cost import Prices
    from mvlm.training.zero.json_file import read_deepspeed_json

    return Prices(gpu, place.deepspeed, read_deepspeed_json(place.deepspeed))


def _list(console: Console) -> int:
    drawn = Drawn("table", "what", "training runs", "numbers")
    for name, table in TABLES.items():
        drawn.add_row(name, table.title, str(len(table.runs)), str(sum(len(row.measured) for row in table.rows)))
    console.print(drawn)
    console.print("Tables share their runs. `mvlm reproduce TABLE --dry-run` says what one takes.", markup=False)
    return 0


def _print_chain(steps: list[ChainStep], prices: Prices | None) -> None:
    """Print the commands, and what each training run takes."""
    from mvlm.reproduce.steps import TrainStep

    hours = 0.0
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.title}{' (done)' if step.is_done() else ''}")
        if isinstance(step, TrainStep):
            where = "" if step.counted() else " (as published)"
            cost = prices.gpu_hours(*step.tables, step.pairs()) if prices else 0.0
            hours += cost
            about = f"; about {cost:,.0f} GPU-hours" if cost else ""
            print(f"  {step.updates():,} updates, {step.pairs():,} pairs per epoch{where}{about}")
        print(f"  {step.command()}", flush=True)
    if prices:
        print(
            f"About {hours:,.0f} GPU-hours of {prices.gpu} in all, finished runs included, by `mvlm plan` for eight "
            "cards at 40 % MFU; VQA, NLVR2 and SNLI-VE, which it cannot plan, by FLOPs alone. Evaluation comes on top."
        )


def _check_out(place: Workplace) -> None:
    """Raises `UserError` if runs would lie outside --out, or if shards of a rehearsal would pass for those of the
    published data, or the other way round."""
    moved = [override for override in place.overrides if override.partition("=")[0].strip() == "run.dir"]
    if moved:
        raise UserError(f"{moved[0]} would be the folder of every run: give --out, in which each has its own.")
    generated = place.out / "data"
    rehearsed = generated.exists() and (place.miniature or generated.resolve() != place.data.resolve())
    if place.shards.exists() and rehearsed != place.miniature:
        what = "a rehearsal in miniature" if rehearsed else "shards that are not in miniature"
        raise UserError(f"{place.out} holds {what}, which would count as done: give another --out.")


def _check_data(table: Table, place: Workplace, steps: list[ChainStep]) -> None:
    """Raises `UserError` if data are missing that an unfinished step would read."""
    from mvlm.reproduce.layout import missing
    from mvlm.reproduce.steps import ShardStep

    if place.miniature or all(step.is_done() for step in steps if isinstance(step, ShardStep)):
        return
    gone = missing(table, place)
    if gone:
        more = f" and {len(gone) - 1} more files and folders" if len(gone) > 1 else ""
        raise UserError(f"{gone[0]}{more} are missing: docs/reproduce.md says what belongs there; --dry-run lists all.")


def _dry_run(table: Table, place: Workplace, console: Console) -> int:
    """Print which data are missing, and the counts of the others beside the published ones; 1 if any are missing."""
    from mvlm.reproduce.layout import ask, counted, missing

    gone = missing(table, place)
    drawn = Drawn("", "rows", "published", "pairs", "published", "by", "left out", title=f"In {place.data}")
    for each in counted(table, place, ask):
        lost = "; ".join(f"{reason}: {count:,}" for reason, count in each.dropped.items())
        published = [f"{number:,}" if number else "–" for number in (each.published_rows, each.published_pairs)]
        drawn.add_row(each.name, f"{each.rows:,}", published[0], f"{each.pairs:,}", published[1], each.said_by, lost)
    console.print(drawn)
    for path in gone:
        print(f"missing: {path}")
    return 1 if gone else 0
