"""Rows of a corpus that must no longer be used, listed in `takedown.json` beside its manifest.

    {"format": "mvlm-takedown", "version": 1, "shards": {"<hash of a shard>": [row in it, ...]}}

The shards stay as they are, and so do all row numbers, the fingerprint and the order of a run: when a run reaches a
row that was taken down, another one takes its place. Rows are listed by their shard's hash, so that the list holds for
every copy of the shard, whatever its name.
"""

from __future__ import annotations

import json
import operator
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from mvlm.data.shards.schema import Manifest
from mvlm.errors import UserError, cannot_read

TAKEDOWN = "takedown.json"
FORMAT, VERSION = "mvlm-takedown", 1


def taken_down(content: bytes | None, manifest: Manifest, path: str) -> Sequence[int]:
    """The rows of a corpus that its list names, int64, ascending; none if there is no list.

    Raises:
        UserError: the list, read from `path`, is malformed.
    """
    by_shard = parse_takedown(content, path)
    rows, first = array("q"), 0
    for number, count in enumerate(manifest.shards.rows if by_shard else ()):
        listed = by_shard.get(manifest.shards[number].hash, ())
        if listed and not 0 <= listed[0] <= listed[-1] < count:
            missing = listed[0] if listed[0] < 0 else listed[-1]
            raise _malformed(path, f"shard {manifest.shards.file(number)} has no row {missing}")
        rows.extend(first + row for row in listed)
        first += count
    return rows


def parse_takedown(content: bytes | None, path: str) -> dict[str, list[int]]:
    """The rows of each shard, ascending, by its hash."""
    if content is None:
        return {}
    try:
        found = json.loads(content)
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {found['format']!r} version {found['version']!r}")
        return {shard: sorted(set(map(operator.index, rows))) for shard, rows in found["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _malformed(path, f"{type(error).__name__}: {error}") from None


def takedown_json(by_shard: Mapping[str, Sequence[int]]) -> str:
    content = {"format": FORMAT, "version": VERSION, "shards": {name: list(rows) for name, rows in by_shard.items()}}
    return json.dumps(content) + "\n"


def read_takedown(folder: Path, manifest: Manifest) -> Sequence[int]:
    """The rows taken down from the corpus in a folder; raises like `taken_down`."""
    path = folder / TAKEDOWN
    try:
        content = path.read_bytes() if path.exists() else None
    except OSError as error:
        raise cannot_read(path, error, "make it readable: no row may be used until it is") from None
    return taken_down(content, manifest, str(path))


def _malformed(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} is not a valid list of rows that were taken down ({reason}), and no row may be used until it "
        "is: put a copy back, or delete it and run `mvlm-data takedown` again with all lists."
    )
