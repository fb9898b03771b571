"""Decay a run's learning rate to zero from several of its checkpoints, and plot what a run of each length reaches.

examples:
  mvlm decay runs/trunk --at 1000,2000,4000 --steps 200
  mvlm decay runs/trunk --at 4000 --steps 400 --launch "torchrun --nproc-per-node 8 -m mvlm" eval.every=100

The trunk is a run whose learning rate stays at its peak: optim.schedule = "constant", or "wsd" with
optim.decay_steps = 0. It needs checkpoint.keep_every, which keeps those checkpoints. It is only read, and may still
be training. Each branch is a separate run in the folder of --out; finished ones are skipped, so the same command
resumes. Overrides (key=value) apply to every branch. Prints a table and writes decay.json and decay.png.
"""

from __future__ import annotations

import argparse
from os.path import normpath
from pathlib import Path
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.arguments import command_words, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvlm decay RUN --at STEPS --steps N [options] [key=value ...]"
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the trunk's run folder")
    parser.add_argument("--at", type=_steps, required=True, metavar="A,B", help="steps of the trunk's checkpoints")
    parser.add_argument("--steps", type=positive, required=True, metavar="N", help="updates in which the rate decays")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the branches (default: RUN-decay)")
    parser.add_argument(
        "--launch",
        type=command_words,
        default="deepspeed --quiet --module mvlm",
        metavar="WORDS",
        help="the command that starts runs (default: %(default)s)",
    )
    parser.add_argument("--deepspeed_config", default="", metavar="JSON", help="(default: the trunk's)")
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Run the branches that are not done, print the table and write the curve; returns the exit code.

    Raises:
        UserError: a checkpoint does not exist, or a branch failed.
    """
    from mvlm.cli.output import write_json
    from mvlm.decay.branches import Branch, draw, gather
    from mvlm.runtime.chain import execute, run_chain
    from mvlm.runtime.commands import shown

    trunk: Path = args.run_folder
    if not trunk.is_dir():
        raise UserError(f"There is no run folder {trunk}: give the folder of the run to decay.")
    out = args.out or Path(normpath(trunk / ".." / f"{trunk.resolve().name}-decay"))  # RUN may be `.`
    launch, overrides = tuple(args.launch), tuple(args.overrides)
    branches = [Branch(trunk, at, args.steps, out, launch, args.deepspeed_config, overrides) for at in args.at]
    for branch in branches:
        branch.prepare()
    if code := run_chain(branches, execute, shown):
        return code
    result = gather(trunk, branches)
    print(_table(result), end="")
    write_json(out / "decay.json", result)
    draw(result, out / "decay.png")
    print(f"Written: {out / 'decay.json'}, {out / 'decay.png'}")
    return 0


def _table(result: dict[str, Any]) -> str:
    from rich.table import Table

    from mvlm.evaluate.tables import render

    names = ["loss", *([result["metric"]] if result["metric"] else [])]
    table = Table("decayed from step", "to step", "pairs seen", *(f"{name}: trunk -> decayed" for name in names))
    for branch in result["branches"]:
        shown = (
            " -> ".join(f"{branch[side][name]:.4f}" if name in branch[side] else "–" for side in ("trunk", "decayed"))
            for name in names
        )
        table.add_row(f"{branch['at']:,}", f"{branch['end']:,}", f"{branch['pairs']:,}", *shown)
    protocol = "The loss is the mean of the last ten log lines up to that step; metrics are from the evaluation there."
    return render(table, protocol)


def _steps(text: str) -> list[int]:
    try:
        steps = sorted({int(word) for word in text.split(",")})
    except ValueError:
        steps = []
    if not steps or steps[0] < 1:
        raise argparse.ArgumentTypeError("give steps of 1 or more, separated by commas, such as 1000,2000")
    return steps
