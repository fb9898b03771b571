"""`mvlm evaluate TASK`: a trained model's numbers on held-out data, on one process or many."""

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
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.evaluate.settings import Settings
from mvlm.evaluate.task import TASKS
from mvlm.pretrained.runs import Loaded, load_run, load_task_run
from mvlm.runtime import dist

EXAMPLES = """examples:
  mvlm evaluate retrieval --checkpoint runs/tiny --data shards/eval --json runs/tiny/retrieval.json
  mvlm evaluate reconstruction --checkpoint runs/tiny --data shards/eval --words red,green,blue
  torchrun --nproc-per-node 8 -m mvlm evaluate retrieval --checkpoint runs/base --data shards/coco --rerank 256
  mvlm evaluate classification --checkpoint runs/tiny --data pictures/test --templates templates.txt
  mvlm evaluate probe --checkpoint runs/tiny --train pictures/train --data pictures/test
  mvlm evaluate foils --checkpoint runs/tiny --data shards/foils
  mvlm evaluate vqa --checkpoint runs/vqa --data shards/vqa_test --predictions answers.json

Retrieval and reconstruction read shards of captioned images, foils those of `python -m data_tools synth --task foils`.
Classification and probe read a folder that has a folder of pictures for each class, called as the class.
VQA, NLVR2 and entailment take a run that was fine-tuned for them, and shards of that task.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure a trained model on held-out shards; a launcher's ranks share the work."
    parser.epilog = EXAMPLES
    parser.add_argument("task", choices=list(TASKS), help="what to measure")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="SHARDS", help="shard folders, or a folder of classes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument(
        "--rerank", type=_count, metavar="K", help="candidates ITM orders again (the run's eval.rerank)"
    )
    parser.add_argument("--batch", type=_positive, metavar="N", help="images or pairs a pass (the run's eval.batch)")
    parser.add_argument("--limit", type=_count, metavar="N", help="first rows used, 0 = all (the run's eval.limit)")
    parser.add_argument(
        "--memory-gb", type=_gigabytes, metavar="GB", help="held at once beside the weights (the run's eval.memory_gb)"
    )
    parser.add_argument(
        "--equal-captions", action="store_true", help="retrieval: a caption is right wherever an equal one is"
    )
    parser.add_argument("--words", type=_words, default=(), metavar="A,B", help="reconstruction: hide these words")
    parser.add_argument(
        "--templates", default="", metavar="FILE", help="classification: sentences, one a line, {} for the class"
    )
    parser.add_argument("--train", default="", metavar="FOLDER", help="probe: the folder of classes it learns from")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="vqa, nlvr2, entailment: as their servers take it"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the table and write the JSON; returns the exit code.

    Raises:
        UserError: the checkpoint or the data cannot be used, or the JSON cannot be written.
    """
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
    return Settings(tuple(args.data), limit, search, args.words, args.templates, args.train)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("give words separated by commas, for example red,blue")
    return words
