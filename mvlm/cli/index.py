"""Embed the images of shards for `mvlm search` and `mvlm serve`; under a launcher the ranks share the work.

An existing index is replaced once the new one is complete.

examples:
  mvlm index shards/train --checkpoint runs/mine --out corpus.index
  mvlm index shards/train --checkpoint runs/mine --out corpus.index --captions
  torchrun --nproc-per-node 8 -m mvlm index shards/train --checkpoint runs/mine --out corpus.index
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.cli.places import require_shards
from mvlm.config.places import require_each_once
from mvlm.runtime.launch import environment
from mvlm.runtime.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="shard folders")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="the folder to write")
    parser.add_argument(
        "--captions",
        action="store_true",
        help="give the shards' captions as much weight as their images: a sentence then first finds images whose "
        "captions match",
    )


def run(args: argparse.Namespace) -> int:
    """Embed and write; returns the exit code.

    Raises:
        UserError: the checkpoint or the shards cannot be used, or the index cannot be written.
    """
    find_checkpoint(args.checkpoint)  # before imports that take seconds
    require_shards(args.shards)
    require_each_once(args.shards)

    from mvlm.pretrained.runs import load_run
    from mvlm.runtime import dist
    from mvlm.search.build import build_index

    if environment()["world"] > 1:
        dist.init()
    try:
        device = dist.device()
        loaded = load_run(args.checkpoint, device)
        count = build_index(loaded, args.shards, args.out, device, args.captions)
        if dist.rank() == 0:
            print(f"{args.out}: {counted(count, 'image')}, embedded with the weights of step {loaded.step}.")
    finally:
        dist.close()
    return 0
