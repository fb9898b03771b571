"""What a corpus is made of: from the command line to `source.json`, and from there to the source again."""

from __future__ import annotations

import argparse
import inspect
import json
import textwrap
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.arguments import count, positive, within

from .readers import AT_URLS, SOURCES, Source
from .readers.inputs import expanded
from .readers.webdataset import RULES

seconds = within(float, lambda value: 0 < value < 1e6, "above 0")
megabytes = seconds

OPTIONS = (
    *("images", "annotations", "names", "subset", "phrases"),
    *("image_column", "caption_column", "key_column", "key_up_to", "image_key", "caption_key", "in_place"),
    *("connections", "per_host", "timeout", "retries", "max_mb", "allow_loopback"),
)
"""Of some sources; each is named like the parameter it becomes."""

MANNERS = ("connections", "per_host", "timeout", "retries")
"""Those of OPTIONS that may be others when a run is resumed: how images are downloaded, not which."""

WRITING = (
    *("split", "split_by", "shard_mb", "longest_side", "quality", "min_size", "max_aspect", "caption_words"),
    *("dedup", "exclude"),
)
"""Arguments that decide what becomes of the records."""


def add_source(command: argparse.ArgumentParser) -> None:
    """The source, its paths and its options; `origin` reads them."""
    command.add_argument("source", choices=tuple(SOURCES), help="what the paths hold")
    command.add_argument("paths", nargs="+", metavar="PATH", help="files or folders, URLs, and patterns of them")
    own = command.add_argument_group("of some sources, as the list below says")
    own.add_argument("--images", nargs="+", metavar="FOLDER", help="where the images lie")
    own.add_argument(
        "--annotations", nargs="+", metavar="FILE", help="VQA's answers: those to the questions of each PATH"
    )
    own.add_argument("--names", metavar="NAMING", help="how a download folder's files are called")
    own.add_argument("--subset", metavar="NAME,NAME", help="the source's own splits to take (default: all)")
    own.add_argument("--phrases", type=count, metavar="N", help="region descriptions to keep of an image; 0: all")
    own.add_argument("--image-column", metavar="NAME")
    own.add_argument("--caption-column", metavar="NAME")
    own.add_argument("--key-column", metavar="NAME")
    own.add_argument("--key-up-to", choices=RULES, help="where in a tar member's name the key of its record ends")
    own.add_argument("--image-key", metavar="EXT", help="extension of the tar members that are images, such as jpg;png")
    own.add_argument("--caption-key", metavar="EXT", help="extension of the tar members that hold the captions")
    own.add_argument(
        "--in-place", action="store_true", default=None, help="leave images where they lie; the shards refer to them"
    )
    own.add_argument("--connections", type=positive, metavar="N", help="downloads at a time")
    own.add_argument("--per-host", type=positive, metavar="N", help="downloads from one host at a time")
    own.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="of one request, from its connection to its end"
    )
    own.add_argument("--retries", type=count, metavar="N", help="further attempts after what may pass")
    own.add_argument("--max-mb", type=megabytes, metavar="MB", help="download no larger image")
    own.add_argument("--allow-loopback", action="store_true", default=None, help="let links lead to this machine")
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "sources:\n" + "\n".join(map(_about, SOURCES))


def _about(name: str) -> str:
    """The first paragraph of the source's docstring."""
    paragraph = (inspect.getdoc(SOURCES[name]) or "").partition("\n\n")[0]
    return textwrap.fill(f"{name}: {' '.join(paragraph.split())}", 100, initial_indent="  ", subsequent_indent="    ")


def origin(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `source.json` keeps, with the paths as they were given."""
    options = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    writing = {name: getattr(arguments, name) for name in WRITING}
    return {
        "source": arguments.source,
        "paths": list(arguments.paths),
        "options": options,
        "writing": writing | {"exclude": list(arguments.exclude)},
    }


def deciding(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An `origin` without what decides nothing about the bytes."""
    options = saved.get("options", {})
    return {**saved, "options": {name: value for name, value in options.items() if name not in MANNERS}}


def writing_arguments(saved: Mapping[str, Any], workers: int) -> argparse.Namespace:
    """The arguments `origin` saved under "writing", as `data_tools.arguments` reads them."""
    writing = saved["writing"]
    return argparse.Namespace(**writing, workers=workers, tolerate=1.0, memory_gb=1)


def open_source(saved: Mapping[str, Any]) -> Source:
    """The source of an `origin`.

    Raises:
        UserError: it cannot be read, lacks an option, or takes no such option.
    """
    name, options = saved["source"], saved["options"]
    parameters = dict(inspect.signature(SOURCES[name]).parameters)
    del parameters["paths"]
    for option in options:
        if option not in parameters:
            raise UserError(f"The source {name} takes no {_flag(option)}: leave it out.")
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise UserError(f"The source {name} needs {_flag(option)}: see `mvlm-data shard --help`.")
    paths = expanded(saved["paths"])
    if name not in AT_URLS and (url := next((path for path in paths if isinstance(path, str)), "")):
        raise UserError(f"The source {name} reads files of this machine: copy {url} here first.")
    return SOURCES[name](paths, **options)


@lru_cache(1)
def opened_source(saved: str) -> Source:
    """The same of an `origin` as JSON, opened once in a process for all of its parts."""
    return open_source(json.loads(saved))


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
