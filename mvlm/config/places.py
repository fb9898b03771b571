"""Folders of shards as people name them, by patterns and file:// URLs too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from os import PathLike, fspath
from pathlib import Path
from urllib.parse import unquote

from mvlm.errors import UserError
from mvlm.runtime.patterns import is_pattern, matching

MANIFEST = "manifest.json"
"""The file that marks a folder of finished shards."""


def as_path(given: object) -> str:
    """The path that was given in a Python call.

    Raises:
        UserError: it is not a path, or empty, which would be taken for the current folder.
    """
    if not isinstance(given, (str, PathLike)):
        raise UserError(
            f"Data are given by their path, and not as a {type(given).__name__}: save pictures and captions, for "
            "example as a table with the columns image and caption, and give its path."
        )
    path = str(fspath(given))
    if not path.strip():
        raise UserError("The path of the data is empty: give that of a folder, a file or shards.")
    return path


def as_paths(given: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[str]:
    """One place or several; raises as `as_path`."""
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return [as_path(place) for place in given]
    return [as_path(given)]


def expanded(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text, or the folders of finished shards that match it, sorted; one that matches nothing stays as it is."""
    return tuple(place for text in texts for place in _expanded(text))


def require_each_once(places: Sequence[str]) -> None:
    """Raises `UserError` if two are the same folder, as each of its rows would then have itself for a twin."""
    found = [place if "://" in place else str(Path(place).resolve()) for place in expanded(places)]
    if len(set(found)) < len(found):
        raise UserError(f"{', '.join(places)} names a corpus twice: name each once.")


def _expanded(text: str) -> list[str]:
    path = unquote(text.removeprefix("file://")) if text.startswith("file://") else text
    if "://" in path:
        return _at_url(path) if is_pattern(path) else [path]
    if not has_magic(path) or Path(path).exists():
        return [path]
    return sorted(str(Path(found).parent) for found in glob(f"{path.rstrip('/')}/{MANIFEST}")) or [path]


def _at_url(pattern: str) -> list[str]:
    manifests = matching(f"{pattern.rstrip('/')}/{MANIFEST}", "check the pattern, and what its store needs for access")
    return [found.removesuffix(f"/{MANIFEST}") for found in manifests] or [pattern]
