"""Arguments that several commands share; the code that reads them is elsewhere, since it imports slowly."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap

from mvlm.runtime.arguments import count, positive, within
from mvlm.runtime.cpu import cores

from .engines import ENGINES
from .inputs import destination

megabytes = within(float, lambda value: 0 < value < 1e9, "above 0")
quality = within(int, lambda value: 1 <= value <= 100, "between 1 and 100")
aspect = within(float, lambda value: value >= 1, "1 or more")
below_million = within(float, lambda value: 0 < value < 1e6, "above 0")
share = within(float, lambda value: 0 <= value <= 1, "between 0 and 1")

KEY_RULES = ("first-dot", "last-dot")
"""The rules that `webdataset` knows."""


def part_share(text: str) -> tuple[int, int]:
    """Read 3/64: the third of 64."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError("write I/N, such as 3/64, with I from 1 to N")
    return int(found[1]), int(found[2])


def add_writing(command: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that writes a corpus; `options.writing_options` reads them."""
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


def add_filters(command: argparse.ArgumentParser) -> None:
    """Add what may be asked of records beyond being sound; `options.with_filters` reads it."""
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
        help="memory for finding equal ids and images (default: 4)",
    )
    asked.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="SHARDS",
        help="leave out everything that looks like an image in these shards, such as a test set",
    )


def add_engine(command: argparse.ArgumentParser) -> None:
    """Add the arguments for where decoding runs."""
    command.add_argument("--workers", type=positive, default=cores(), help="decoding processes (default: all cores)")
    command.add_argument("--engine", choices=ENGINES, default="local", help="processes here, or Ray (default: local)")
    command.add_argument(
        "--ray-address", metavar="HOST:PORT", help="a running Ray (default: $RAY_ADDRESS, or one started here)"
    )


def add_source(command: argparse.ArgumentParser, described: bool) -> None:
    """Add the source, its paths and its options; `origin.origin` reads them.

    Args:
        described: also list the sources and what each takes, which imports all readers.
    """
    names = None
    if described:
        from .readers import SOURCES

        names = tuple(SOURCES)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = "sources:\n" + "\n".join(_about(name, source) for name, source in SOURCES.items())
    command.add_argument("source", choices=names, metavar="SOURCE", help="what the paths hold")
    command.add_argument("paths", nargs="+", metavar="PATH", help="files or folders, URLs, and patterns of them")
    own = command.add_argument_group("options of some sources, which the list below names")
    own.add_argument("--images", nargs="+", metavar="FOLDER", help="where the images are")
    own.add_argument("--annotations", nargs="+", metavar="FILE", help="VQA's answers to the questions of each PATH")
    own.add_argument("--names", metavar="NAMING", help="how the files of a download folder are named")
    own.add_argument("--subset", metavar="NAME,NAME", help="the source's own splits to take (default: all)")
    own.add_argument(
        "--phrases", type=count, metavar="N", help="region descriptions to keep per image; 0: all (default: 8)"
    )
    own.add_argument("--image-column", metavar="NAME", help="column of the images, their paths or their links")
    own.add_argument("--caption-column", metavar="NAME", help="column of the captions")
    own.add_argument("--key-column", metavar="NAME", help="column of the keys (default: the source's own rule)")
    own.add_argument("--key-up-to", choices=KEY_RULES, help="where in a tar member's name the key of its record ends")
    own.add_argument("--image-key", metavar="EXT", help="extension of the tar members that are images, such as jpg;png")
    own.add_argument("--caption-key", metavar="EXT", help="extension of the tar members that hold the captions")
    own.add_argument(
        "--in-place", action="store_true", default=None, help="leave images where they are; the shards refer to them"
    )
    own.add_argument("--connections", type=positive, metavar="N", help="downloads at a time (default: 256)")
    own.add_argument("--per-host", type=positive, metavar="N", help="downloads from one host at a time (default: 8)")
    own.add_argument(
        "--timeout",
        type=below_million,
        metavar="SECONDS",
        help="limit of one request, from its connection to its end (default: 30)",
    )
    own.add_argument(
        "--retries", type=count, metavar="N", help="further attempts after a failure that may pass (default: 2)"
    )
    own.add_argument("--max-mb", type=below_million, metavar="MB", help="download no larger image (default: 32)")
    own.add_argument(
        "--allow-loopback", action="store_true", default=None, help="allow links that lead to this machine"
    )


def _about(name: str, source: object) -> str:
    """The first paragraph of the source's docstring."""
    paragraph = (inspect.getdoc(source) or "").partition("\n\n")[0]
    return textwrap.fill(f"{name}: {' '.join(paragraph.split())}", 100, initial_indent="  ", subsequent_indent="    ")
