"""Evaluate a trained model on held-out data, or a run as it trains; under a launcher the ranks share the work.

examples:
  mvlm evaluate retrieval --checkpoint runs/tiny --data shards/eval --json runs/tiny/retrieval.json
  mvlm evaluate reconstruction --checkpoint runs/tiny --data shards/eval --words red,green,blue
  torchrun --nproc-per-node 8 -m mvlm evaluate retrieval --checkpoint runs/base --data shards/coco --rerank 256
  mvlm evaluate classification --checkpoint runs/tiny --data pictures/test --templates templates.txt
  mvlm evaluate probe --checkpoint runs/tiny --train pictures/train --data pictures/test
  mvlm evaluate foils --checkpoint runs/tiny --data shards/foils
  mvlm evaluate --follow runs/base
  mvlm evaluate vqa --checkpoint runs/vqa --data shards/vqa_test --predictions answers.json

Retrieval and reconstruction read shards of captioned images, foils those of `mvlm-data synth --task foils`.
Classification and probe read a folder with one subfolder of images per class, named like the class.
VQA, NLVR2 and entailment need a run that was fine-tuned for them, and shards of that task.
--follow evaluates each new checkpoint of a run as the run's own [eval] says, until the run is done, into its
eval.jsonl; with eval.every = -1 the run leaves that to this job, which then keeps the best checkpoint by eval.select.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from mvlm.cli.output import write_whole
from mvlm.config.schema import Eval
from mvlm.errors import UserError
from mvlm.evaluate import labelled
from mvlm.evaluate.follow import EvaluationJob
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.evaluate.settings import Settings
from mvlm.evaluate.task import TASKS
from mvlm.pretrained.runs import Loaded, load_run, load_task_run
from mvlm.runtime import dist
from mvlm.runtime.arguments import count, positive, within

gigabytes = within(float, lambda value: 0 < value < math.inf, "above 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("task", nargs="?", choices=list(TASKS), help="what to evaluate")
    parser.add_argument("--checkpoint", metavar="RUN", help="a run folder, RUN/best, or one of its checkpoints")
    parser.add_argument("--follow", type=Path, metavar="RUN", help="evaluate each new checkpoint of this run")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SHARDS",
        help="shard folders, or a folder of classes (default of --follow: data.eval)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    parser.add_argument(
        "--rerank", type=count, metavar="K", help="candidates that ITM re-ranks (default: the run's eval.rerank)"
    )
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="images or pairs per pass (default: the run's eval.batch)"
    )
    parser.add_argument(
        "--limit", type=count, metavar="N", help="use only the first N rows, 0 = all (default: the run's eval.limit)"
    )
    parser.add_argument(
        "--memory-gb",
        type=gigabytes,
        metavar="GB",
        help="memory limit besides the weights (default: the run's eval.memory_gb)",
    )
    parser.add_argument(
        "--equal-captions", action="store_true", help="retrieval: a caption is right if an equal one is"
    )
    parser.add_argument("--words", type=_words, default=(), metavar="A,B", help="reconstruction: mask these words")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="reconstruction: draw eight images with theirs into this folder"
    )
    parser.add_argument(
        "--templates", default="", metavar="FILE", help="classification: sentences, one per line, {} for the class"
    )
    parser.add_argument("--train", default="", metavar="FOLDER", help="probe: the folder of classes to fit it on")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="vqa, nlvr2, entailment: answers in the evaluation server's format",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the table and write the JSON; returns the exit code.

    Raises:
        UserError: the checkpoint or the data cannot be used, or the JSON cannot be written.
    """
    if args.follow:
        return _follow(args)
    for given, name in ((args.task, "a task"), (args.checkpoint, "--checkpoint RUN"), (args.data, "--data SHARDS")):
        if not given:
            args.refuse(f"{name} is required, or --follow RUN")
    if args.predictions and args.task not in labelled.TITLES:
        raise UserError(f"--predictions is for {', '.join(labelled.TITLES)}: {args.task} has none; leave it out.")
    dist.init()
    try:
        task, device = TASKS[args.task], dist.device()
        if args.task in labelled.TITLES:
            loaded: Loaded[Any] = load_task_run(args.checkpoint, args.task, device)
        else:
            loaded = load_run(args.checkpoint, device)
        settings = _settings(args, loaded.config.eval)
        result = task.run(loaded, settings, device) | {"step": loaded.step, "data": args.data}
        if loaded.averaged:
            result["weights"] = f"averaged, train.ema = {loaded.config.train.ema}"
        predictions = result.pop("predictions", "")
        if dist.rank() == 0:
            print(task.text(result), end="")
            if loaded.averaged:
                print(f"Weights: {result['weights']}")
            _write(args.predictions, predictions, "--predictions")
            _write(args.json, json.dumps(result, indent=1) + "\n", "--json")
    finally:
        dist.close()
    return 0


def _follow(args: argparse.Namespace) -> int:
    if args.task or args.checkpoint:
        args.refuse("--follow evaluates as the run's own [eval] says: leave the task and --checkpoint out")
    dist.init()
    try:
        EvaluationJob(args.follow, tuple(args.data), lambda text: print(text, flush=True)).follow()
    finally:
        dist.close()
    return 0


def _write(path: Path | None, text: str, option: str) -> None:
    """Nothing where the option was not given."""
    if path:
        write_whole(path, text, option)
        Console(stderr=True).print(f"Written to {path}", markup=False, highlight=False)


def _settings(args: argparse.Namespace, defaults: Eval) -> Settings:
    """What was asked for, and the run's [eval] for the rest."""
    search = SearchSettings(
        batch=args.batch or defaults.batch,
        rerank=defaults.rerank if args.rerank is None else args.rerank,
        memory_gb=args.memory_gb or defaults.memory_gb,
        equal_captions=args.equal_captions,
    )
    limit = defaults.limit if args.limit is None else args.limit
    return Settings(tuple(args.data), limit, search, args.words, args.templates, args.train, args.pictures)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("give words separated by commas, for example red,blue")
    return words
