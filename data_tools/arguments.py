"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.shard import Options
from data_tools.split import parse_split


def add_writing(command: argparse.ArgumentParser) -> None:
    """What every command takes that writes a corpus; `writing_options` reads it."""
    command.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder to make")
    command.add_argument("--split", help="shares by name, for example train=0.88,eval=0.12: one folder each in SHARDS")
    command.add_argument(
        "--split-by", default="key", metavar="FIELD", help="field whose equal values stay together (default: the id)"
    )
    command.add_argument("--shard-mb", type=megabytes, default=256, help="image megabytes a shard (default: 256)")
    command.add_argument(
        "--tolerate", type=share, default=0.5, metavar="SHARE", help="records that may be dropped (default: 0.5)"
    )


def writing_options(arguments: argparse.Namespace) -> Options:
    split = parse_split(arguments.split, arguments.split_by) if arguments.split else None
    return Options(split, max(1, int(arguments.shard_mb * 1e6)), arguments.workers, arguments.tolerate)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def megabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value
