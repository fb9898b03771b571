"""The commands that make synthetic shards and data sets."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime.arguments import positive

from .arguments import add_writing

TASKS = ("caption", "vqa", "pairs", "entailment", "foils")
"""The tasks of `synth`."""

SPLIT_BY = "group"
"""The default field of `synth`: rows of one group share scenes."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    made = subparsers.add_parser(
        "synth",
        help="make shards of synthetic scenes",
        description="Make shards of a small synthetic world of coloured shapes with known answers. Except for "
        "captions, text alone and image alone stay at chance: see data_tools/synth. By default no two splits "
        "share a scene.",
    )
    made.add_argument(
        "--task",
        choices=TASKS,
        required=True,
        help="captions; vqa: questions; pairs: statements about two scenes, as in NLVR2; entailment; "
        "foils: captions, each with a copy in which two colours or shapes are swapped",
    )
    made.add_argument("--count", type=positive, required=True, help="number of rows")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--holdout-pairs",
        type=int,
        default=0,
        metavar="K",
        help="colour-shape pairs that appear only in an additional split `novel` (default: 0)",
    )
    add_writing(made)
    made.set_defaults(run=synth, workers=1, split_by=SPLIT_BY)

    small = subparsers.add_parser(
        "miniature",
        help="lay out the published data sets in miniature, to rehearse on",
        description="Write COCO, Flickr30k, Visual Genome, SBU, CC3M, VQA v2, NLVR2 and SNLI-VE into a folder as "
        "`mvlm reproduce` expects them: the published names and forms, with a few synthetic scenes for images.",
    )
    small.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    small.add_argument("--seed", type=int, default=0)
    small.set_defaults(run=miniature)


def synth(arguments: argparse.Namespace) -> int:
    from .options import require_effect, writing_options
    from .progress import progress
    from .sharding import shard as shard_records
    from .synth.holdout import held_out, with_novel
    from .synth.records import records

    require_effect(arguments, SPLIT_BY)
    options = writing_options(arguments)
    things = held_out(arguments.holdout_pairs, arguments.seed)
    if things:
        options = replace(options, split=with_novel(options.split))
        print("held out: " + ", ".join(sorted(" ".join(thing) for thing in things)))
    made = records(arguments.task, arguments.count, arguments.seed, things)
    with progress("drawing", arguments.count) as advance:
        print(shard_records(made, arguments.out, options, advance).summary())
    return 0


def miniature(arguments: argparse.Namespace) -> int:
    from .synth.miniature import write_miniature

    folder: Path = arguments.folder
    if folder.exists():
        raise UserError(f"{folder} exists already: delete it or give another folder.")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_miniature(unfinished, arguments.seed)
    unfinished.rename(folder)
    print(f"{folder}: the published data sets in miniature")
    return 0
