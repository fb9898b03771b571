"""The commands that inspect finished shards, or add files beside them without changing them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime.arguments import positive
from mvlm.runtime.cpu import cores
from mvlm.runtime.log import logger
from mvlm.runtime.wording import counted

from .inputs import PathOrUrl, as_place, name_of, require_shards

KINDS = (".png", ".html")
"""Endings of files of histograms."""

SHOWN = 5
"""How many lines of a list that name no row are printed."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    checked = subparsers.add_parser("verify", help="read and decode everything; exit 1 on damage")
    checked.add_argument("shards", nargs="+", metavar="SHARDS", help="folders or URLs of shards")
    checked.add_argument(
        "--images", type=_number_or_all, default=None, metavar="N|all", help="images to decode (default: all)"
    )
    checked.add_argument("--workers", type=positive, default=cores(), help="decoding processes (default: all cores)")
    checked.add_argument("--json", action="store_true", help="print JSON instead of lines: what is wrong, by corpus")
    checked.set_defaults(run=verify)

    indexed = subparsers.add_parser(
        "row-index",
        help="add row indexes to shards that have none",
        description="Write an index beside each shard that has none, or a damaged one. It locates rows and holds "
        "the checksums of their texts. Shards and fingerprint do not change, so runs are not affected.",
    )
    indexed.add_argument("shards", metavar="SHARDS", help="a folder of shards, with its splits")
    indexed.set_defaults(run=row_index)

    gone = subparsers.add_parser(
        "takedown",
        help="list rows that must not be used any more",
        description="Find the rows whose key, URL or hash a list names, and add them to `takedown.json` beside the "
        "manifest. Every reader honours it; the shards, the numbers of all rows and the fingerprint do not change.",
    )
    gone.add_argument("shards", metavar="SHARDS", help="a folder or URL of shards, with its splits")
    gone.add_argument(
        "--list", type=Path, nargs="+", required=True, metavar="FILE", help="keys, URLs or hashes, one per line"
    )
    gone.add_argument("--by", nargs="+", default=[], metavar="COLUMN", help="compare only with these columns")
    gone.set_defaults(run=takedown)

    counted = subparsers.add_parser("stats", help="counts and distributions")
    counted.add_argument("shards", nargs="+", metavar="SHARDS", help="folders or URLs of shards")
    counted.add_argument("--json", action="store_true", help="print JSON instead of a table")
    counted.add_argument("--where", default="", metavar="CONDITION", help="of the rows that meet it, as in data.where")
    counted.add_argument("--plots", type=_plots_file, metavar="FILE", help="write histograms to this .png or .html")
    counted.set_defaults(run=stats)

    shown = subparsers.add_parser("preview", help="show some rows as one HTML file")
    shown.add_argument("shards", nargs="+", metavar="SHARDS", help="folders or URLs of shards")
    shown.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .html to write")
    shown.add_argument("--count", type=positive, default=100, help="rows of each split (default: 100)")
    shown.set_defaults(run=preview)


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _plots_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in KINDS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(KINDS)}")
    return path


def verify(arguments: argparse.Namespace) -> int:
    require_shards(arguments.shards)

    from .corpora import corpora_here, corpus_places

    found = {}
    for place in corpus_places(arguments.shards):
        with corpora_here([place]) as (folder,):
            found[place] = _verify_corpus(place, folder, arguments)
    if arguments.json:
        print(json.dumps({str(place): wrong for place, wrong in found.items()}, indent=1))
    return 1 if any(found.values()) else 0


def _verify_corpus(place: PathOrUrl, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """What is wrong with the corpus of `place`, whose files are in `folder`."""
    from mvlm.data.shards.schema import read_manifest

    from .inspect.stats import UNCHECKED
    from .inspect.verify import problems
    from .progress import progress

    manifest = read_manifest(folder)
    found = []
    with progress(f"verifying {folder.name}", manifest.rows) as advance:
        for problem in problems(folder, arguments.workers, advance, arguments.images):
            found.append(str(problem).replace(str(folder), str(place)))
            if not arguments.json:
                logger("mvlm-data").error(found[-1])
    sampled = arguments.images is not None and arguments.images < manifest.rows
    decoded = f" ({arguments.images:,} of the images decoded)" if sampled else ""
    outcome = counted(len(found), "problem") if found else "intact"
    if not arguments.json:
        rows, shards = counted(manifest.rows, "row"), counted(len(manifest.shards), "shard")
        print(f"{place}: {rows} in {shards}, {outcome}{decoded}")
        if manifest.shards.unindexed:
            print(f"{place}: {UNCHECKED.format(counted(manifest.shards.unindexed, 'shard'))}")
    return found


def takedown(arguments: argparse.Namespace) -> int:
    require_shards([arguments.shards])

    from .corpora import corpus_places
    from .takedown import read_list, take_down

    lines = read_list(arguments.list)
    unmatched = frozenset(lines)
    for folder in corpus_places([arguments.shards]):
        found = take_down(folder, lines, arguments.by)
        unmatched &= found.unmatched  # a line that names a row of one split names none of the others
        print(f"{folder}: {counted(found.rows, 'row')} taken down, {found.new:,} of them now")
    shown = sorted(unmatched)[:SHOWN] + (["..."] if len(unmatched) > SHOWN else [])
    print(f"{len(unmatched):,} of {len(lines):,} lines name no row" + (f": {', '.join(shown)}" if shown else ""))
    return 0


def row_index(arguments: argparse.Namespace) -> int:
    require_shards([arguments.shards])
    place = as_place(arguments.shards)
    if isinstance(place, str):
        raise UserError(
            f"{place} is a URL, where no row index is made: run `mvlm-data row-index` on the folder that was "
            "uploaded, or on a copy, and upload it again."
        )

    from mvlm.data.shards.schema import read_manifest

    from .corpora import corpora
    from .progress import progress
    from .row_index import add_indexes

    for folder in corpora(place):
        manifest = read_manifest(folder)
        with progress(f"indexing {folder.name}", manifest.rows) as advance:
            written = add_indexes(folder, advance)
        there = len(manifest.shards) - written
        print(f"{folder}: {counted(written, 'row index', 'row indexes')} written, {there:,} already there")
    return 0


def stats(arguments: argparse.Namespace) -> int:
    if arguments.plots:
        _refuse_existing(arguments.plots)
    require_shards(arguments.shards)

    from .corpora import corpora_here, corpus_places
    from .inspect.plots import plots
    from .inspect.stats import corpus_stats, table
    from .store.disk import write_output

    found = {}
    for place in corpus_places(arguments.shards):
        with corpora_here([place]) as (folder,):
            found[place] = corpus_stats(folder, arguments.where)
    names = [name_of(place) for place in found]
    by_name = {
        name if names.count(name) == 1 else str(place): of_corpus
        for name, (place, of_corpus) in zip(names, found.items(), strict=True)
    }
    if arguments.plots:
        write_output(arguments.plots, plots(by_name, arguments.plots.suffix))
    if arguments.json:
        print(json.dumps(next(iter(by_name.values())) if len(found) == 1 else by_name, indent=1))
    else:
        print("\n\n".join(f"{folder}: {table(of_corpus)}" for folder, of_corpus in found.items()))
    return 0


def preview(arguments: argparse.Namespace) -> int:
    _refuse_existing(arguments.out)
    require_shards(arguments.shards)

    from .corpora import corpora_here, corpus_places
    from .inspect.preview import contact_sheet
    from .store.disk import write_output

    places = corpus_places(arguments.shards)
    title = ", ".join(Path(text).resolve().name for text in arguments.shards)
    with corpora_here(places) as folders:
        page = contact_sheet(folders, arguments.count, title)
    write_output(arguments.out, page)
    print(f"{arguments.out}: {len(page) / 1e6:,.1f} MB")
    return 0


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already: delete it or give another name.")
