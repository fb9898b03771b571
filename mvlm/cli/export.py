"""Export a trained model for people who do not have mvlm.

examples:
  mvlm export runs/mine --out exported/mine
  mvlm export runs/vqa/checkpoints/step_00010000 --out exported/vqa
  mvlm export runs/mine --out exported/mine --push-to-hub OWNER/NAME --private
  mvlm export runs/mine --out exported/mine_onnx --format onnx

hf: a Hugging Face folder that AutoModel and AutoProcessor load, with a model card; the weights are bit-identical.
onnx, torch: graphs that turn images and sentences into vectors for retrieval, each verified against the model.
Exports a run's newest checkpoint, or the one you name. More in docs/export.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mvlm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--format", choices=("hf", "onnx", "torch"), default="hf", help="(default: hf)")
    parser.add_argument("--push-to-hub", metavar="REPO", help="hf: also commit the folder to OWNER/NAME on the hub")
    parser.add_argument("--private", action="store_true", help="make REPO private if it is new")


def run(args: argparse.Namespace) -> int:
    """Export; returns the exit code.

    Raises:
        UserError: there is no such run, packages are missing, the folder cannot be written, or the hub refuses it.
    """
    from mvlm.checkpoint.layout import find_checkpoint

    find_checkpoint(args.run_folder)  # before imports that take seconds
    if args.push_to_hub and args.format != "hf":
        raise UserError(f"--push-to-hub sends a Hugging Face folder, and --format is {args.format}: leave one out.")
    if args.private and not args.push_to_hub:
        raise UserError("--private is for a repository on the hub: give --push-to-hub OWNER/NAME too, or leave it out.")

    from mvlm.export.written import export_run

    export_run(args.run_folder, args.out, args.format)
    print(f"Written to {args.out}")
    if args.push_to_hub:
        from mvlm.export.hub import push

        print(f"Pushed: {push(args.out, args.push_to_hub, args.private)}")
    return 0
