"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

from mvlm.errors import UserError
from mvlm.runtime.arguments import positive, within

from .corpora import corpus_places
from .engines import ENGINES
from .engines.local import cores
from .filters import Filters
from .pipeline import Options
from .split import parse_split
from .store.destination import destination

megabytes = within(float, lambda value: 0 < value < 1e9, "above 0")
quality = within(int, lambda value: 1 <= value <= 100, "between 1 and 100")
aspect = within(float, lambda value: value >= 1, "1 or more")
share = within(float, lambda value: 0 <= value <= 1, "between 0 and 1")


def part_share(text: str) -> tuple[int, int]:
    """Read 3/64: the third of 64."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError("write I/N, such as 3/64, with I from 1 to N")
    return int(found[1]), int(found[2])


def add_writing(command: argparse.ArgumentParser) -> None:
    """What every command takes that writes a corpus; `writing_options` reads it."""
    command.add_argument(
        "--out",
        type=destination,
        required=True,
        metavar="SHARDS",
        help="folder to write, or a URL such as s3://bucket/x",
    )
    command.add_argument("--split", help="shares by name, for example train=0.88,eval=0.12: one folder each in SHARDS")
    command.add_argument(
        "--split-by",
        default="key",
        metavar="FIELD",
        help="keep rows with equal values of this field together (default: %(default)s; key is the id)",
    )
    command.add_argument("--shard-mb", type=megabytes, default=256, help="megabytes of images per shard (default: 256)")
    command.add_argument(
        "--tolerate",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="share of records that may be dropped (default: 0.5)",
    )


def writing_options(arguments: argparse.Namespace) -> Options:
    """The options that `add_writing` and `--workers` give."""
    split = parse_split(arguments.split, arguments.split_by) if arguments.split else None
    return Options(split, max(1, int(arguments.shard_mb * 1e6)), arguments.workers, arguments.tolerate)


def add_filters(command: argparse.ArgumentParser) -> None:
    """What may be asked of the records beyond being sound; `with_filters` reads it."""
    asked = command.add_argument_group("what is kept, and how")
    asked.add_argument(
        "--longest-side", type=positive, default=0, metavar="PIXELS", help="shrink larger images to this, and no others"
    )
    asked.add_argument(
        "--quality", type=quality, default=90, help="JPEG quality of shrunk images, 1 to 100 (default: 90)"
    )
    asked.add_argument(
        "--min-size", type=positive, default=0, metavar="PIXELS", help="drop images whose shorter side is smaller"
    )
    asked.add_argument(
        "--max-aspect",
        type=aspect,
        default=0.0,
        metavar="RATIO",
        help="drop images whose longer side exceeds the shorter by this factor",
    )
    asked.add_argument(
        "--caption-words", type=positive, nargs=2, metavar=("MIN", "MAX"), help="drop captions with fewer or more words"
    )
    asked.add_argument(
        "--dedup",
        choices=("exact", "perceptual"),
        default="",
        help="keep only the first of images with the same bytes, or that look the same",
    )
    asked.add_argument(
        "--memory-gb",
        type=megabytes,
        default=4,
        metavar="GB",
        help="of memory to look for equal ids and images in (default: 4)",
    )
    asked.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="SHARDS",
        help="leave out everything that looks like an image in these shards, such as a test set",
    )


def with_filters(options: Options, arguments: argparse.Namespace) -> Options:
    words = tuple(arguments.caption_words) if arguments.caption_words else None
    if words and words[0] > words[1]:
        raise UserError(f"--caption-words {words[0]} {words[1]}: give the smaller number first.")
    filters = Filters(
        arguments.longest_side,
        arguments.quality,
        arguments.min_size,
        arguments.max_aspect,
        words and (words[0], words[1]),
    )
    exclude = tuple(corpus_places(arguments.exclude))
    memory = int(arguments.memory_gb * 1e9)
    return replace(options, filters=filters, dedup=arguments.dedup, memory_bytes=memory, exclude=exclude)


def add_engine(command: argparse.ArgumentParser) -> None:
    """Where the decoding runs."""
    command.add_argument("--workers", type=positive, default=cores(), help="decoding processes (default: all cores)")
    command.add_argument("--engine", choices=ENGINES, default="local", help="processes here, or Ray (default: local)")
    command.add_argument(
        "--ray-address", metavar="HOST:PORT", help="a running Ray (default: $RAY_ADDRESS, or one started here)"
    )
