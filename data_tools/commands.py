"""The commands that read a source: their arguments, what they do and what they print."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm.errors import UserError
from mvlm.runtime.arguments import positive
from mvlm.runtime.log import logger
from mvlm.runtime.wording import counted

from .arguments import add_engine, add_filters, add_source, add_writing, part_share
from .inputs import PathOrUrl, require_inputs, require_shards

if TYPE_CHECKING:
    from .reshape.retry import Outcome


def add_parser(subs: argparse._SubParsersAction[argparse.ArgumentParser], described: bool) -> None:
    shard = subs.add_parser("shard", help="make shards from a source")
    add_source(shard, described)
    shard.set_defaults(run=shard_source)
    add_engine(shard)
    shard.add_argument(
        "--part",
        type=part_share,
        metavar="I/N",
        help="make only the I-th of N shares of the parts, as one task of an array; the command without it joins them",
    )
    add_writing(shard)
    add_filters(shard)

    counted = subs.add_parser("count", help="count what `shard` would find, without reading images or writing anything")
    add_source(counted, described)
    counted.add_argument("--json", action="store_true", help="print JSON instead of a sentence")
    counted.set_defaults(run=count_source)

    train = subs.add_parser("tokenizer", help="train a byte-level BPE on the texts of corpora for any task")
    train.add_argument("shards", nargs="+", metavar="SHARDS", help="folders or URLs of shards")
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    train.add_argument("--vocab", type=positive, default=8192, help="maximum number of tokens (default: 8192)")
    train.set_defaults(run=tokenizer)

    again = subs.add_parser("retry", help="retry records that a corpus lists as dropped, and add those that are good")
    again.add_argument("shards", metavar="SHARDS", help="a folder or URL made by `shard`, with its splits")
    add_engine(again)
    again.set_defaults(run=retry_dropped)


def missing_source_hint(words: Sequence[str]) -> str:
    """A hint to name the source first, if a path stands in its place; "" if that is not what is wrong."""
    from mvlm.data.shards.forms import recognise

    if len(words) < 2 or not words[1] or not Path(words[1]).exists():
        return ""
    form = recognise(words[1])
    if form is None:
        return ""
    paths = shlex.join(map(str, form.paths))
    return f"Name the kind of {words[1]} first: `mvlm-data {words[0]} {form.source} {paths}`."


def shard_source(arguments: argparse.Namespace) -> int:
    require_inputs(arguments.paths)

    from .options import require_effect, with_filters, writing_options
    from .origin import open_source, origin
    from .progress import progress
    from .sharding import shard as shard_records
    from .sharding import shard_share

    require_effect(arguments)
    options = with_filters(writing_options(arguments), arguments)
    made_of = origin(arguments)
    options = replace(options, engine=arguments.engine, ray_address=arguments.ray_address, origin=made_of)
    source = open_source(made_of)
    if arguments.part:
        task, tasks = arguments.part
        made, there = shard_share(source, arguments.out, options, arguments.part)
        print(f"{arguments.out}: share {task} of {tasks}: {counted(made, 'part')} made, {there:,} already there")
        return 0
    with progress("sharding", source.size, lambda: source.position) as advance:
        found = shard_records(source, arguments.out, options, advance)
        print(found.summary())
    if found.warning():
        logger("mvlm-data").warning(found.warning())
    return 0


def count_source(arguments: argparse.Namespace) -> int:
    require_inputs(arguments.paths)

    from .inspect.count import count
    from .origin import WRITING, open_source, origin
    from .progress import progress

    source = open_source(origin(argparse.Namespace(**vars(arguments), **dict.fromkeys(WRITING, ()))))
    with progress("counting", source.size, lambda: source.position) as advance:
        found = count(source, advance)
    print(json.dumps(found.as_json()) if arguments.json else found)
    return 0


def retry_dropped(arguments: argparse.Namespace) -> int:
    require_shards([arguments.shards])

    from mvlm.data.shards.schema import SOURCE

    from .corpora import folders_with
    from .reshape.retry_at_url import retried_here

    for place in folders_with(SOURCE, arguments.shards):
        with nullcontext(place) if isinstance(place, Path) else retried_here(place) as out:
            found = _retry(place, out, arguments)
        listed = counted(found.listed, "record")
        print(f"{place}: {listed} listed before, {found.recovered:,} added, {found.left:,} listed now")
    return 0


def _retry(place: PathOrUrl, out: Path, arguments: argparse.Namespace) -> Outcome:
    """Retry the corpus of `place`, whose files are in the folder `out`."""
    from mvlm.data.shards.schema import SOURCE

    from .options import with_filters, writing_options
    from .origin import open_source, writing_arguments
    from .progress import progress
    from .reshape.retry import only_retry, read_origin, retry

    saved = read_origin(out, place)
    saved_arguments = writing_arguments(saved, arguments.workers)
    options = with_filters(writing_options(saved_arguments), saved_arguments)
    options = replace(options, engine=arguments.engine, ray_address=arguments.ray_address)
    with only_retry(out):
        try:
            source = open_source(saved)
        except UserError as error:
            raise UserError(f"{error} (The paths are those in {place}/{SOURCE}, seen from this folder.)") from None
        with progress("retrying", source.size, lambda: source.position) as advance:
            return retry(source, out, options, advance)


def tokenizer(arguments: argparse.Namespace) -> int:
    require_shards(arguments.shards)
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists already: delete it or give another --out.")

    from mvlm.data.samples.bpe import train_bpe

    from .store.disk import write_output

    trained = train_bpe(_texts(arguments.shards), arguments.vocab)
    write_output(arguments.out, trained.to_str(pretty=True) + "\n")
    print(f"{arguments.out}: {trained.get_vocab_size():,} tokens")
    return 0


def _texts(places: list[str]) -> Iterator[str]:
    """The captions, questions or sentences of every row."""
    from mvlm.data.shards.schema import CAPTION, read_manifest

    from .corpora import batches, corpora_here, corpus_places, kept_rows
    from .inspect.stats import TEXTS

    for place in corpus_places(places):
        with corpora_here([place]) as (folder,):
            manifest = read_manifest(folder)
            for batch in batches(folder, manifest, kept_rows(folder)):
                texts = batch[TEXTS[manifest.task]]
                yield from (texts.flatten() if manifest.task == CAPTION else texts).to_pylist()
