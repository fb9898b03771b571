"""Patterns of URLs, such as s3://bucket/part-*/shards."""

from __future__ import annotations

import re
from glob import has_magic

from mvlm.runtime.storage import Storage


def is_pattern(url: str) -> bool:
    """Whether a URL has a wildcard; with HTTP a question mark is none, as it begins the query."""
    return any(sign in url for sign in ("*[" if url.startswith(("http://", "https://")) else "*?["))


def matching(url: str, remedy: str) -> list[str]:
    """The files that match a pattern, sorted; all files below the folder before its first wildcard are listed.

    Args:
        remedy: as for `Storage`.
    """
    parts = url.split("/")
    first = next(number for number, part in enumerate(parts) if has_magic(part))
    base, pattern = "/".join(parts[:first]), "/".join(parts[first:])
    return [f"{base}/{name}" for name in sorted(Storage(base, remedy).sizes()) if _fits(name, pattern)]


def _fits(name: str, pattern: str) -> bool:
    """As a shell matches: ** stands for any folders, * for part of a name, ? for one letter, [ab] for one of these.

    A bracket that is never closed stands for itself, and a set that cannot be, such as [z-a], matches nothing.
    """
    wildcards = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}

    def translated(found: re.Match[str]) -> str:
        sign = found[0]
        if sign in wildcards:
            return wildcards[sign]
        is_set = sign.startswith("[") and sign.endswith("]")
        return sign.replace("[!", "[^") if is_set else re.escape(sign)

    expression = re.sub(r"\*\*/|\*|\?|\[!?\]?[^\]]+\]|\[|[^*?\[]+", translated, pattern)
    try:
        return re.fullmatch(expression, name) is not None
    except re.error:
        return False
