"""From a command's arguments to the options of a corpus."""

from __future__ import annotations

import argparse
from dataclasses import replace

from mvlm.errors import UserError

from .corpora import corpus_places
from .filters import Filters
from .pipeline import Options
from .split import parse_split


def require_effect(arguments: argparse.Namespace, split_by: str = "key") -> None:
    """Raises `UserError` for an option that only modifies one that was not given, and for a `--split` without names.

    Args:
        split_by: the default of `--split-by`.
    """
    if arguments.split == "":
        raise UserError("--split '' names no splits: write it like train=0.88,eval=0.12, or leave it out.")
    if arguments.split is None and arguments.split_by != split_by:
        raise UserError(f"--split-by {arguments.split_by} would change nothing: give --split too, or leave it out.")
    if "quality" in arguments and arguments.quality != Filters.quality and not arguments.longest_side:
        raise UserError(
            f"--quality {arguments.quality} would change nothing: give --longest-side too, or leave it out."
        )


def writing_options(arguments: argparse.Namespace) -> Options:
    """The options that `add_writing` and `--workers` give."""
    split = parse_split(arguments.split, arguments.split_by) if arguments.split else None
    return Options(split, max(1, int(arguments.shard_mb * 1e6)), arguments.workers, arguments.tolerate)


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
