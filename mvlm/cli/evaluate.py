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

`mvlm evaluate TASK --help` lists the options of each task.
Retrieval and reconstruction read shards of captioned images, foils those of `mvlm-data synth --task foils`.
Classification and probe read a folder with one subfolder of images per class, named like the class.
VQA, NLVR2 and entailment need a run that was fine-tuned for them, and shards of that task.
--follow evaluates each new checkpoint of a run as the run's own [eval] says, until the run is done, into its
eval.jsonl; with eval.every = -1 the run leaves that to this job, which then keeps the best checkpoint by eval.select.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.output import require_no_folder, write_whole
from mvlm.cli.places import require_folder, require_no_checkpoint, require_shards
from mvlm.runtime.arguments import above_zero, count, positive

LABELLED, CLASSES = ("vqa", "nlvr2", "entailment"), ("classification", "probe")
HELP = {
    "retrieval": "find the caption of an image, and the image of a caption",
    "reconstruction": "fill in masked words and patches, with the other modality and without",
    "classification": "sort images into classes by their names alone",
    "probe": "fit a linear classifier to the image features",
    "foils": "tell a true sentence from one with a wrong word",
    "vqa": "answer questions about images",
    "nlvr2": "judge sentences about two images",
    "entailment": "say whether an image entails a sentence",
}
"""The tasks of mvlm/evaluate/task.py, which is imported only to evaluate, since that takes seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(refuse=parser.error, task=None)
    parser.add_argument("--follow", type=Path, metavar="RUN", help="evaluate each new checkpoint of this run")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="SHARDS", help="with --follow: shard folders (default: data.eval)"
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", title="tasks")
    for name, does in HELP.items():
        task = tasks.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        task.set_defaults(parser=task, refuse=task.error)
        _add_common(task, name)
        for option in OWN.get(name, ()):
            task.add_argument(option, **OPTIONS[option])


def _add_common(parser: argparse.ArgumentParser, task: str) -> None:
    classes = task in CLASSES
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="a run folder, RUN/best, or one of its checkpoints"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FOLDER" if classes else "SHARDS",
        help="a folder with one subfolder of images per class" if classes else "shard folders",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="images or pairs per pass (default: the run's eval.batch)"
    )
    taken = "N images, evenly out of all classes" if classes else "the first N rows"
    parser.add_argument(
        "--limit", type=count, metavar="N", help=f"use only {taken}, 0 = all (default: the run's eval.limit)"
    )


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("give words separated by commas, for example red,blue")
    return words


OPTIONS: dict[str, dict[str, Any]] = {
    "--rerank": {
        "type": count,
        "metavar": "K",
        "help": "candidates that ITM re-ranks (default: the run's eval.rerank)",
    },
    "--equal-captions": {"action": "store_true", "help": "count a caption as right if an identical one is"},
    "--words": {"type": _words, "default": (), "metavar": "A,B", "help": "mask these words"},
    "--pictures": {"type": Path, "metavar": "FOLDER", "help": "draw eight reconstructed examples into this folder"},
    "--templates": {"metavar": "FILE", "help": "sentences, one per line, {} for the class"},
    "--train": {"required": True, "metavar": "FOLDER", "help": "the folder of classes to fit it on"},
    "--where": {"metavar": "CONDITION", "help": "use only the rows that meet it, like data.where"},
    "--memory-gb": {
        "type": above_zero,
        "metavar": "GB",
        "help": "memory limit besides the weights (default: the run's eval.memory_gb)",
    },
    "--predictions": {
        "type": Path,
        "metavar": "FILE",
        "help": "write the answers in the evaluation server's format",
    },
}
OWN: dict[str, tuple[str, ...]] = {
    "retrieval": ("--rerank", "--equal-captions", "--where", "--memory-gb"),
    "reconstruction": ("--words", "--pictures", "--where"),
    "classification": ("--templates", "--memory-gb"),
    "probe": ("--train",),
    "foils": ("--memory-gb",),
    **dict.fromkeys(LABELLED, ("--where", "--predictions")),
}
"""The options of each task besides those that all take."""


def run(args: argparse.Namespace) -> int:
    """Measure, print the table and write the JSON; returns the exit code.

    Raises:
        UserError: the checkpoint or the data cannot be used, or the JSON cannot be written.
    """
    if args.follow:
        return _follow(args)
    if not args.task:
        args.refuse("a task is required, or --follow RUN")
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    require_no_folder(args.json, "--json")
    require_no_folder(getattr(args, "predictions", None), "--predictions")
    if args.task in CLASSES:
        require_folder(*args.data, why="give one that has a folder of pictures for each class.")
    else:
        require_shards(args.data)

    from mvlm.evaluate.measured import evaluate_checkpoint, taken_by
    from mvlm.evaluate.task import TASKS
    from mvlm.runtime import dist

    dist.init()
    try:
        given = {name: getattr(args, name, None) for name in taken_by(args.task)}
        asked = {name: value for name, value in given.items() if value is not None}
        result = evaluate_checkpoint(args.task, args.checkpoint, args.data, **asked)
        predictions = result.pop("predictions", "")
        if dist.rank() == 0:
            print(TASKS[args.task].text(result), end="")
            if "weights" in result:
                print(f"Weights: {result['weights']}")
            _write(getattr(args, "predictions", None), predictions, "--predictions")
            _write(args.json, json.dumps(result, indent=1) + "\n", "--json")
    finally:
        dist.close()
    return 0


def _follow(args: argparse.Namespace) -> int:
    if args.task:
        args.refuse("--follow evaluates as the run's own [eval] says: leave the task out")
    require_no_checkpoint(args.follow)

    from mvlm.evaluate.follow import EvaluationJob
    from mvlm.runtime import dist
    from mvlm.runtime.commands import shown

    dist.init()
    try:
        EvaluationJob(args.follow, tuple(args.data), shown).follow()
    finally:
        dist.close()
    return 0


def _write(path: Path | None, text: str, option: str) -> None:
    """Write the file if the option was given."""
    from rich.console import Console

    if path:
        write_whole(path, text, option)
        Console(stderr=True).print(f"Written to {path}", markup=False, highlight=False)
