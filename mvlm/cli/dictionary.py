"""Make the weights of an image encoder from a corpus's own pictures, in seconds and without training.

examples:
  mvlm dictionary shards/train --out dictionary.safetensors
  mvlm train run.toml --deepspeed_config ds_configs/cpu.json model.vision=patch_dictionary \\
      model.vision_weights=dictionary.safetensors

The encoder is a layer whose filters are the patches that the pictures consist of, found by k-means. docs/small.md says
when it beats one trained from random weights: for a few thousand pictures, on a CPU, with nothing pretrained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime.arguments import positive
from mvlm.runtime.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="the shard folders to be trained on")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the safetensors file to write")
    parser.add_argument(
        "--image-size", type=positive, default=64, help="model.image_size, a multiple of 16 (default: 64)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file; returns the exit code.

    Raises:
        UserError: the file exists, or the shards cannot be used.
    """
    from mvlm.cli.places import require_shards

    require_shards(args.shards)
    if args.out.exists():
        raise UserError(f"{args.out} exists already: delete it or give another --out.")
    if args.image_size % 16:
        raise UserError(f"--image-size {args.image_size} is not a multiple of 16: a feature is 16 pixels wide.")

    from mvlm.api.dictionary import make_dictionary

    pictures = make_dictionary(args.shards, args.out, args.image_size)
    print(f"{args.out}: made of {counted(pictures, 'picture')}")
    return 0
