"""What a corpus is made from: from the command line to `source.json`, and from there back to the source."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mvlm.errors import UserError

from .inputs import expanded
from .readers import AT_URLS, SOURCES, Source

OPTIONS = (
    *("images", "annotations", "names", "subset", "phrases"),
    *("image_column", "caption_column", "key_column", "key_up_to", "image_key", "caption_key", "in_place"),
    *("connections", "per_host", "timeout", "retries", "max_mb", "allow_loopback"),
)
"""Options of some sources, each named like the parameter that it becomes."""

MANNERS = ("connections", "per_host", "timeout", "retries")
"""Those of OPTIONS that may differ when a run is resumed: they decide how images are downloaded, not which."""

WRITING = (
    *("split", "split_by", "shard_mb", "longest_side", "quality", "min_size", "max_aspect", "caption_words"),
    *("dedup", "exclude"),
)
"""Arguments that decide what becomes of the records."""


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
    """An `origin` without the options that do not affect the bytes."""
    options = saved.get("options", {})
    return {**saved, "options": {name: value for name, value in options.items() if name not in MANNERS}}


def writing_arguments(saved: Mapping[str, Any], workers: int) -> argparse.Namespace:
    """The arguments `origin` saved under "writing", as `data_tools.options` reads them."""
    writing = saved["writing"]
    return argparse.Namespace(**writing, workers=workers, tolerate=1.0, memory_gb=1)


def open_source(saved: Mapping[str, Any]) -> Source:
    """The source of an `origin`.

    Raises:
        UserError: no source has that name, or it cannot be read, lacks an option, or takes no such option.
    """
    name, options = saved["source"], saved["options"]
    if name not in SOURCES:
        raise UserError(f"There is no source {name}: give one of {', '.join(SOURCES)}.")
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
    """The source of an `origin` in JSON, opened once per process for all of its parts."""
    return open_source(json.loads(saved))


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
