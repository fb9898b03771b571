"""The commands that go back to a source."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from data_tools.arguments import add_engine, demanding, writing_options
from data_tools.origin import open_source, writing_arguments
from data_tools.pipeline import SOURCE
from data_tools.progress import progress
from data_tools.reshape.retry import only_retry, read_origin, retry
from mvlm.errors import UserError


def add_parser(subs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    again = subs.add_parser("retry", help="read again what a corpus lists as dropped, and add what is good now")
    again.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `shard` made, with its splits")
    add_engine(again)
    again.set_defaults(run=retry_dropped)


def retry_dropped(arguments: argparse.Namespace) -> int:
    out: Path = arguments.shards
    saved = read_origin(out)
    saved_arguments = writing_arguments(saved, arguments.workers)
    options = demanding(writing_options(saved_arguments), saved_arguments)
    options = replace(options, engine=arguments.engine, ray_address=arguments.ray_address)
    with only_retry(out):
        try:
            source = open_source(saved)
        except UserError as error:
            raise UserError(f"{error} (The paths are those in {out / SOURCE}, seen from this folder.)") from None
        with progress("retrying", source.size, lambda: source.position) as advance:
            outcome = retry(source, out, options, advance)
    print(
        f"{out}: {outcome.listed:,} records were listed, {outcome.recovered:,} added, {outcome.left:,} are listed now"
    )
    return 0
