"""The commands that read a source: what each takes, and what it does between its arguments and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_tools.arguments import add_demands, add_engine, add_writing, demanding, positive, writing_options
from data_tools.corpora import batches, corpora
from data_tools.inspect.stats import TEXTS
from data_tools.origin import add_source, open_source, origin
from data_tools.pipeline import shard as shard_records
from data_tools.progress import progress
from data_tools.writer import write_text, writing
from mvlm.data.shards.schema import CAPTION, read_manifest
from mvlm.errors import UserError


def add_parser(subs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shard = subs.add_parser("shard", help="make shards of a source")
    add_source(shard)
    shard.set_defaults(run=shard_source)
    add_engine(shard)
    add_writing(shard)
    add_demands(shard)

    train = subs.add_parser("tokenizer", help="train a byte-level BPE on the texts of corpora of any task")
    train.add_argument("shards", type=Path, nargs="+", metavar="SHARDS")
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    train.add_argument("--vocab", type=positive, default=8192, help="most tokens (default: 8192)")
    train.set_defaults(run=tokenizer)


def shard_source(arguments: argparse.Namespace) -> int:
    options = demanding(writing_options(arguments), arguments)
    made_of = origin(arguments)
    options = replace(options, engine=arguments.engine, ray_address=arguments.ray_address, origin=made_of)
    source = open_source(made_of)
    with progress("sharding", source.size, lambda: source.position) as advance:
        found = shard_records(source, arguments.out, options, advance)
        print(found.summary())
    if found.warning():
        print(found.warning(), file=sys.stderr)
    return 0


def tokenizer(arguments: argparse.Namespace) -> int:
    from mvlm.data.samples.tokenizer import train_tokenizer  # seconds to import, and no other command needs it

    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists already: delete it or give another --out.")
    trained = train_tokenizer(_texts(arguments.shards), arguments.vocab)
    with writing(arguments.out):
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, trained.backend_tokenizer.to_str(pretty=True) + "\n")
    print(f"{arguments.out}: {len(trained):,} tokens")
    return 0


def _texts(paths: list[Path]) -> Iterator[str]:
    """The captions, questions or sentences of every row."""
    for path in paths:
        for folder in corpora(path):
            manifest = read_manifest(folder)
            for batch in batches(folder, manifest):
                texts = batch[TEXTS[manifest.task]]
                yield from (texts.flatten() if manifest.task == CAPTION else texts).to_pylist()
