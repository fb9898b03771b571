"""The commands that look at finished shards, cut them anew or make synthetic ones."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from mvlm.runtime.arguments import positive
from mvlm.runtime.log import logger

from .arguments import add_writing, megabytes, writing_options
from .corpora import corpora, corpora_here, corpus_places
from .engines.local import cores
from .inspect.plots import KINDS, plots
from .inspect.preview import contact_sheet
from .inspect.stats import UNCHECKED, corpus_stats, table
from .inspect.verify import problems
from .progress import progress
from .readers.inputs import Place, as_place, name_of
from .reshape.merge import merge
from .reshape.resplit import resplit
from .row_index import add_indexes
from .sharding import shard as shard_records
from .split import Split, parse_split
from .store.disk import write_output
from .synth import TASKS
from .synth.holdout import held_out, with_novel
from .synth.miniature import write_miniature
from .synth.records import records
from .takedown import read_list, take_down


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this module's commands; each sets `run`, which takes the arguments and returns the exit code."""
    _add_looking(subparsers)
    _add_cutting(subparsers)
    made = subparsers.add_parser(
        "synth",
        help="make shards of synthetic scenes",
        description="Make shards of a small synthetic world of coloured shapes with known answers. Except for "
        "captions, text alone and image alone stay at chance: see data_tools/synth. By default no two splits "
        "share a scene.",
    )
    made.add_argument(
        "--task",
        choices=tuple(TASKS),
        required=True,
        help="captions; vqa: questions; pairs: statements about two scenes, as in NLVR2; entailment; "
        "foils: captions, each with a copy in which two colours or shapes are swapped",
    )
    made.add_argument("--count", type=positive, required=True, help="number of rows")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--holdout-pairs",
        type=int,
        default=0,
        metavar="K",
        help="colour-shape pairs that appear only in an additional split `novel` (default: 0)",
    )
    add_writing(made)
    made.set_defaults(run=synth, workers=1, split_by="group")

    small = subparsers.add_parser(
        "miniature",
        help="lay out the published data sets in miniature, to rehearse on",
        description="Write COCO, Flickr30k, Visual Genome, SBU, CC3M, VQA v2, NLVR2 and SNLI-VE into a folder as "
        "`mvlm reproduce` expects them: the published names and forms, with a few synthetic scenes for images.",
    )
    small.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    small.add_argument("--seed", type=int, default=0)
    small.set_defaults(run=miniature)


def _add_looking(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    checked = subparsers.add_parser("verify", help="read and decode everything; exit 1 on damage")
    checked.add_argument("shards", nargs="+", metavar="SHARDS")
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
        "the checksums of their texts. Shards and fingerprint do not change, so no run does.",
    )
    indexed.add_argument("shards", type=Path, metavar="SHARDS")
    indexed.set_defaults(run=row_index)

    gone = subparsers.add_parser(
        "takedown",
        help="list rows that must not be used any more",
        description="Find the rows whose key, URL or hash a list names, and add them to `takedown.json` beside the "
        "manifest. Every reader honours it; the shards, the numbers of all rows and the fingerprint stay.",
    )
    gone.add_argument("shards", metavar="SHARDS", help="a folder of shards, with its splits, or a URL")
    gone.add_argument("--list", type=Path, nargs="+", required=True, metavar="FILE", help="one key, URL or hash a line")
    gone.add_argument("--by", nargs="+", default=[], metavar="COLUMN", help="compare with these columns alone")
    gone.set_defaults(run=takedown)

    counted = subparsers.add_parser("stats", help="counts and distributions")
    counted.add_argument("shards", nargs="+", metavar="SHARDS")
    counted.add_argument("--json", action="store_true", help="print JSON instead of a table")
    counted.add_argument("--where", default="", metavar="CONDITION", help="of the rows that meet it, as in data.where")
    counted.add_argument("--plots", type=_plots_file, metavar="FILE", help="write histograms to this .png or .html")
    counted.set_defaults(run=stats)

    shown = subparsers.add_parser("preview", help="show some rows as one HTML file")
    shown.add_argument("shards", nargs="+", metavar="SHARDS")
    shown.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .html to write")
    shown.add_argument("--count", type=positive, default=100, help="rows of each split (default: 100)")
    shown.set_defaults(run=preview)


def _add_cutting(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    merged = subparsers.add_parser("merge", help="merge several corpora into one")
    merged.add_argument("shards", nargs="+", metavar="SHARDS")
    merged.add_argument("--prefix-keys", action="store_true", help="prefix keys with the name of their corpus's folder")
    merged.set_defaults(run=merge_corpora)

    divided = subparsers.add_parser("split", help="split a corpus by a hash of a column")
    divided.add_argument("shards", metavar="SHARDS")
    divided.add_argument("--split", required=True, help="shares by name, for example train=0.9,eval=0.1")
    divided.add_argument(
        "--split-by",
        default="key",
        metavar="COLUMN",
        help="keep rows with equal values of this column together (default: key); crc32: those of one image",
    )
    divided.set_defaults(run=split_corpus)
    for command in (merged, divided):
        command.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder to write")
        command.add_argument(
            "--shard-mb", type=megabytes, default=256, help="megabytes of images per shard (default: 256)"
        )


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _plots_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in KINDS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(KINDS)}")
    return path


def synth(arguments: argparse.Namespace) -> int:
    options = writing_options(arguments)
    things = held_out(arguments.holdout_pairs, arguments.seed)
    if things:
        options = replace(options, split=with_novel(options.split))
        print("held out: " + ", ".join(sorted(" ".join(thing) for thing in things)))
    made = records(arguments.task, arguments.count, arguments.seed, things)
    with progress("drawing", arguments.count) as advance:
        print(shard_records(made, arguments.out, options, advance).summary())
    return 0


def miniature(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    if folder.exists():
        raise UserError(f"{folder} exists already: delete it or give another folder.")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_miniature(unfinished, arguments.seed)
    unfinished.rename(folder)
    print(f"{folder}: the published data sets in miniature")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    found = {}
    for place in corpus_places(arguments.shards):
        with corpora_here([place]) as (folder,):
            found[place] = _verify_corpus(place, folder, arguments)
    if arguments.json:
        print(json.dumps({str(place): wrong for place, wrong in found.items()}, indent=1))
    return 1 if any(found.values()) else 0


def _verify_corpus(place: Place, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """What is wrong with the corpus of a place, which lies in `folder` for now."""
    manifest = read_manifest(folder)
    found = []
    with progress(f"verifying {folder.name}", manifest.rows) as advance:
        for problem in problems(folder, arguments.workers, advance, arguments.images):
            found.append(str(problem).replace(str(folder), str(place)))
            if not arguments.json:
                logger("data_tools").error(found[-1])
    sampled = arguments.images is not None and arguments.images < manifest.rows
    decoded = f" ({arguments.images:,} of the images decoded)" if sampled else ""
    outcome = f"{len(found):,} problems" if found else "sound"
    if not arguments.json:
        print(f"{place}: {manifest.rows:,} rows in {len(manifest.shards):,} shards, {outcome}{decoded}")
        if manifest.shards.unindexed:
            print(f"{place}: {UNCHECKED.format(manifest.shards.unindexed)}")
    return found


def takedown(arguments: argparse.Namespace) -> int:
    lines, shards = read_list(arguments.list), arguments.shards
    for folder in [shards] if "://" in shards else corpora(Path(shards)):
        found = take_down(folder, lines, arguments.by)
        print(
            f"{folder}: {found.rows:,} rows are taken down, {found.new:,} of them now; "
            f"{found.unmatched:,} of {len(lines):,} lines name no row of it"
        )
    return 0


def row_index(arguments: argparse.Namespace) -> int:
    for folder in corpora(arguments.shards):
        manifest = read_manifest(folder)
        with progress(f"indexing {folder.name}", manifest.rows) as advance:
            written = add_indexes(folder, advance)
        print(f"{folder}: {written:,} row indexes written, {len(manifest.shards) - written:,} were there")
    return 0


def stats(arguments: argparse.Namespace) -> int:
    if arguments.plots:
        _refuse_existing(arguments.plots)
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
    places = corpus_places(arguments.shards)
    title = ", ".join(Path(text).resolve().name for text in arguments.shards)
    with corpora_here(places) as folders:
        page = contact_sheet(folders, arguments.count, title)
    write_output(arguments.out, page)
    print(f"{arguments.out}: {len(page) / 1e6:,.1f} MB")
    return 0


def merge_corpora(arguments: argparse.Namespace) -> int:
    with corpora_here(corpus_places(arguments.shards)) as folders:
        prefixes = [f"{name}/" for name in _names(folders)] if arguments.prefix_keys else []
        total = sum(read_manifest(folder).rows for folder in folders)
        with progress("merging", total) as advance:
            rows = merge(folders, arguments.out, _shard_bytes(arguments), prefixes, advance)
    print(f"{arguments.out}: {rows:,} rows of {len(folders)} corpora")
    return 0


def split_corpus(arguments: argparse.Namespace) -> int:
    split = parse_split(arguments.split, arguments.split_by)
    with corpora_here([as_place(arguments.shards)]) as (folder,):
        rows = _split_corpus(folder, arguments, split)
    for name, count in rows.items():
        print(f"{arguments.out / name}: {count:,} rows")
    return 0


def _split_corpus(folder: Path, arguments: argparse.Namespace, split: Split) -> dict[str, int]:
    with progress("splitting", read_manifest(folder).rows) as advance:
        return resplit(folder, arguments.out, split, _shard_bytes(arguments), advance)


def _shard_bytes(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.shard_mb * 1e6))


def _names(folders: list[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as tell them apart.

    Raises:
        UserError: a folder is named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError(f"{', '.join(map(str, folders))} names a corpus twice: name each once.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already: delete it or give another name.")
