"""Average the weights of several checkpoints into one, a soup, and measure it.

examples:
  mvlm average runs/a/checkpoints/step_0000{1,2,3}000 --out soups/last_three
  mvlm average runs/seed0 runs/seed1/best --out soups/seeds --data shards/eval

The soup is a folder that --checkpoint and checkpoint.init take. With --data, the soup and its parts are evaluated
on what their runs were trained for: retrieval, or the task that they were fine-tuned for.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mvlm.errors import UserError

SHOWN = (
    "eval/mean_recall",
    "eval/image_to_text_r1",
    "eval/text_to_image_r1",
    "eval/accuracy",
    "eval/consistency",
    "eval/classification_top1",
    "eval/foils_itm",
)
"""Metrics that the table shows if all were evaluated for them; --json has every metric."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="run folders, RUN/best, or checkpoints")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder for the soup")
    parser.add_argument("--data", nargs="+", default=[], metavar="SHARDS", help="shard folders to measure it on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")


def run(args: argparse.Namespace) -> int:
    """Write the soup and print what it and its parts score; returns the exit code.

    Raises:
        UserError: the checkpoints are of different models, the soup cannot be written, or the data cannot be used.
    """
    from mvlm.checkpoint.layout import find_checkpoint
    from mvlm.cli.output import require_no_folder, write_json
    from mvlm.cli.places import require_shards
    from mvlm.config.places import require_each_once

    if args.json and not args.data:
        raise UserError("--json writes what is measured on --data: give --data too, or leave --json out.")
    parts = [find_checkpoint(path) for path in args.checkpoints]  # before imports that take seconds
    require_shards(args.data)
    require_each_once(args.data)
    require_no_folder(args.json, "--json")

    from mvlm.checkpoint.average import average
    from mvlm.runtime import dist

    average(parts, args.out)
    print(f"Written: {args.out}, the mean of {len(parts)} checkpoints")
    if not args.data:
        return 0
    dist.init()
    try:
        found = {str(path): _measured(path, args.data) for path in (*parts, args.out)}
    finally:
        dist.close()
    print(_table(found, str(args.out)), end="")
    write_json(args.json, found)
    return 0


def _measured(checkpoint: Path, data: list[str]) -> dict[str, float]:
    """The metrics that the checkpoint's own run would have logged for it."""
    from dataclasses import replace

    from mvlm.evaluate.training import Evaluator
    from mvlm.pretrained.runs import load_trained
    from mvlm.runtime import dist

    loaded: Any = load_trained(checkpoint, dist.device())
    held_out, settings = replace(loaded.data, eval=tuple(data)), replace(loaded.eval, select="")
    blueprint = loaded.blueprint
    evaluator = Evaluator(
        held_out, blueprint.task, blueprint.objectives, blueprint.model.image_size, settings, pictures=0
    )
    return evaluator(loaded.model, loaded.tokenizer_folder.parent, loaded.step, True).metrics


def _table(found: dict[str, dict[str, float]], soup: str) -> str:
    from rich.table import Table

    from mvlm.evaluate.tables import percent, render

    names = [name for name in SHOWN if all(name in metrics for metrics in found.values())]
    table = Table("checkpoint", *(name.removeprefix("eval/").replace("_", " ") for name in names))
    for path, metrics in found.items():
        shown = (percent(metrics[name]) for name in names)
        table.add_row("the soup" if path == soup else path, *shown)
    return render(table, "Shares in %, each evaluated as its run's [eval] says.")
