"""The commands that make new corpora from finished ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm.errors import UserError
from mvlm.runtime.wording import counted

from .arguments import megabytes
from .inputs import PathOrUrl, destination, require_shards

if TYPE_CHECKING:
    from .split import Split


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    merged = subparsers.add_parser("merge", help="merge several corpora into one")
    merged.add_argument("shards", nargs="+", metavar="SHARDS", help="folders or URLs of shards")
    merged.add_argument("--prefix-keys", action="store_true", help="prefix keys with the name of their corpus's folder")
    merged.set_defaults(run=merge_corpora)

    divided = subparsers.add_parser("split", help="split a corpus by a hash of a column")
    divided.add_argument("shards", metavar="SHARDS", help="a folder or URL of shards")
    divided.add_argument("--split", required=True, help="shares by name, for example train=0.9,eval=0.1")
    divided.add_argument(
        "--split-by",
        default="key",
        metavar="COLUMN",
        help="keep rows with equal values of this column together (default: key); crc32: those of one image",
    )
    divided.set_defaults(run=split_corpus)
    for command in (merged, divided):
        command.add_argument("--out", type=destination, required=True, metavar="SHARDS", help="folder or URL to write")
        command.add_argument(
            "--shard-mb", type=megabytes, default=256, help="megabytes of images per shard (default: 256)"
        )


def merge_corpora(arguments: argparse.Namespace) -> int:
    require_shards(arguments.shards)

    from mvlm.data.shards.schema import read_manifest

    from .corpora import corpora_here, corpus_places
    from .progress import progress
    from .reshape.merge import merge

    places = corpus_places(arguments.shards)
    prefixes = [f"{name}/" for name in _names(places)] if arguments.prefix_keys else []
    with corpora_here(places) as folders:
        total = sum(read_manifest(folder).rows for folder in folders)
        with progress("merging", total) as advance:
            rows = merge(folders, arguments.out, _shard_bytes(arguments), prefixes, advance)
    print(f"{arguments.out}: {counted(rows, 'row')} of {counted(len(folders), 'corpus', 'corpora')}")
    return 0


def split_corpus(arguments: argparse.Namespace) -> int:
    require_shards([arguments.shards])

    from .corpora import corpora_here, corpus_place
    from .split import parse_split

    split = parse_split(arguments.split, arguments.split_by)
    with corpora_here([corpus_place(arguments.shards)]) as (folder,):
        rows = _split_corpus(folder, arguments, split)
    for name, count in rows.items():
        print(f"{arguments.out}/{name}: {counted(count, 'row')}")
    return 0


def _split_corpus(folder: Path, arguments: argparse.Namespace, split: Split) -> dict[str, int]:
    from mvlm.data.shards.schema import read_manifest

    from .progress import progress
    from .reshape.resplit import resplit

    with progress("splitting", read_manifest(folder).rows) as advance:
        return resplit(folder, arguments.out, split, _shard_bytes(arguments), advance)


def _shard_bytes(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.shard_mb * 1e6))


def _names(places: Sequence[PathOrUrl]) -> list[str]:
    """The corpora's names, each with as many parent folders as it takes to tell them apart.

    Raises:
        UserError: a corpus is named twice.
    """
    parts = [place.resolve().parts if isinstance(place, Path) else tuple(place.split("/")) for place in places]
    if len(set(parts)) < len(parts):
        raise UserError(f"{', '.join(map(str, places))} names a corpus twice: name each once.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
