"""`mvlm evaluate TASK`: a trained model's numbers on held-out data, on one process or many."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mvlm import dist
from mvlm.cli.output import write_whole
from mvlm.data.dataset import EvalDataset, LabelledEvalDataset
from mvlm.data.index import Mixture
from mvlm.data.labelled import class_names
from mvlm.data.tokenizer import load_tokenizer
from mvlm.errors import UserError
from mvlm.evaluate import labelled
from mvlm.evaluate.task import TASKS, Settings
from mvlm.model.weights import load_run, load_task_run

EXAMPLES = """examples:
  mvlm evaluate retrieval --checkpoint runs/tiny --data shards/eval --json runs/tiny/retrieval.json
  mvlm evaluate reconstruction --checkpoint runs/tiny --data shards/eval --words red,green,blue
  torchrun --nproc-per-node 8 -m mvlm evaluate retrieval --checkpoint runs/base --data shards/coco --rerank 256
  mvlm evaluate vqa --checkpoint runs/vqa --data shards/vqa_test --predictions answers.json
"""


def add_parser(subparsers: Any) -> None:
    """Add `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a trained model on held-out shards",
        description="Measure a trained model on held-out shards; a launcher's ranks share the work.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=[*TASKS, *labelled.TITLES], help="what to measure")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--data", required=True, nargs="+", metavar="SHARDS", help="shard folders, concatenated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument(
        "--rerank", type=_count, metavar="K", help="candidates ITM orders again (the run's eval.rerank)"
    )
    parser.add_argument("--batch", type=_positive, metavar="N", help="images or pairs a pass (the run's eval.batch)")
    parser.add_argument("--limit", type=_count, metavar="N", help="first rows used, 0 = all (the run's eval.limit)")
    parser.add_argument("--words", type=_words, default=(), metavar="A,B", help="reconstruction: hide these words")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="vqa, nlvr2, entailment: as their servers take it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table and write the JSON; returns the exit code.

    Raises:
        UserError: the checkpoint or the data cannot be used, or the JSON cannot be written.
    """
    if args.predictions and args.task not in labelled.TITLES:
        raise UserError(f"--predictions is for {', '.join(labelled.TITLES)}: {args.task} has none; leave it out.")
    dist.init()
    try:
        result, text, predictions = (_chosen if args.task in labelled.TITLES else _measured)(args)
        if dist.rank() == 0:
            print(text, end="")
            if args.predictions:
                write_whole(args.predictions, predictions, "--predictions")
                _say(f"Written to {args.predictions}")
            if args.json:
                write_whole(args.json, json.dumps(result, indent=1) + "\n", "--json")
                _say(f"Written to {args.json}")
    finally:
        dist.close()
    return 0


Measured = tuple[dict[str, Any], str, str]
"""The result, the same as a table, and a file of predictions or nothing."""


def _measured(args: argparse.Namespace) -> Measured:
    """Of a pretrained model."""
    task, device = TASKS[args.task], dist.device()
    loaded = load_run(args.checkpoint, device)
    defaults = loaded.config.eval
    limit = defaults.limit if args.limit is None else args.limit
    mixture, tokenizer = Mixture(args.data), load_tokenizer(str(loaded.tokenizer_folder))
    dataset = EvalDataset(mixture, tokenizer, loaded.config, limit)
    settings = Settings(
        args.batch or defaults.batch, defaults.rerank if args.rerank is None else args.rerank, args.words
    )
    result = task.run(loaded.model, dataset, settings, device)
    return result | _origin(args, loaded.step, mixture), task.text(result), ""


def _chosen(args: argparse.Namespace) -> Measured:
    """Of a model fine-tuned to choose among classes."""
    device = dist.device()
    loaded = load_task_run(args.checkpoint, args.task, device)
    defaults = loaded.config.eval
    limit = defaults.limit if args.limit is None else args.limit
    mixture, tokenizer = Mixture(args.data, task=args.task), load_tokenizer(str(loaded.tokenizer_folder))
    dataset = LabelledEvalDataset(mixture, tokenizer, loaded.config, limit)
    classes = class_names(args.task, loaded.tokenizer_folder)
    batch = args.batch or defaults.batch
    result, predicted = labelled.evaluate_labelled(loaded.model, dataset, classes, batch, device)
    predictions = labelled.submission(args.task, dataset, predicted)
    return result | _origin(args, loaded.step, mixture), labelled.as_text(result), predictions


def _origin(args: argparse.Namespace, step: int, mixture: Mixture) -> dict[str, Any]:
    return {"step": step, "data": args.data, "fingerprint": mixture.fingerprint}


def _say(sentence: str) -> None:
    Console(stderr=True).print(sentence, markup=False, highlight=False)


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


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("give words separated by commas, for example red,blue")
    return words
