"""The sets of the npm package `@iconify/json`, from its archive or its folder, one at a time."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvlm.errors import UserError

from ..members import DAMAGE
from . import words as known
from .drawing import MOST_PARENTS, Malformed, resolved, svg_of
from .names import IconName, SetNames, category_words, is_brand, is_brand_category

MAX_SET_BYTES = 256_000_000
"""Of a set's file; the largest has 104 MB."""

HEAD_BYTES = 65_536
"""The beginning of a set's file, which holds `info`, so that most sets that are left out are not parsed in full."""


@dataclass(frozen=True)
class Icon:
    """A drawing under its first name, and its others."""

    name: str
    svg: str
    read: IconName
    others: tuple[IconName, ...] = ()  # of aliases with the same drawing
    category: str = ""
    problem: str = ""  # why it has no SVG


@dataclass(frozen=True)
class IconSet:
    """A set that may be used, with what its makers say about it."""

    prefix: str
    title: str
    author: str
    licence: str  # SPDX
    licence_url: str
    icons: list[Icon] = field(repr=False)


def icon_sets(path: Path, skip: int = 0) -> Iterator[IconSet]:
    """The sets that may be used, in the order of their files, without the first `skip`, of which only `info` is parsed.

    Raises:
        UserError: this is not such a package, or it is damaged.
    """
    found = False
    for name, content in _files(path):
        found = True
        try:
            info = _info(content)
            if not usable(Path(name).stem, info):
                continue
            if skip:
                skip -= 1
                continue
            parsed = json.loads(content)
            yield _icon_set(parsed, info)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: {name} is not a set of icons ({error!r}): fetch the package again.") from None
    if not found:
        raise UserError(
            f"{path} holds no json/*.json: give the archive or the folder of the npm package @iconify/json."
        )


def usable(prefix: str, info: dict[str, Any]) -> bool:
    """Whether a set may be used, by its licence and unless it is hidden or one of logos."""
    licence = (info.get("license") or {}).get("spdx")
    logos = prefix in known.LOGO_SETS or info.get("category") == known.LOGO_CATEGORY
    return licence in known.LICENCES and not info.get("hidden") and not logos


def _info(content: bytes) -> dict[str, Any]:
    head = content[:HEAD_BYTES].decode("utf-8", "ignore")
    at = head.find('"info":')
    if at >= 0:
        try:
            return dict(json.JSONDecoder().raw_decode(head[at + 7 :].lstrip())[0])
        except ValueError:
            pass
    return dict(json.loads(content).get("info") or {})


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each set's file; in an archive, in its own order."""
    if path.is_dir():
        folder = path / "json" if (path / "json").is_dir() else path / "package/json"
        for file in sorted(folder.glob("*.json")):
            _check_size(path, file.name, file.stat().st_size)
            yield file.name, file.read_bytes()
        return
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                parts = Path(member.name).parts
                if member.isfile() and parts[-2:-1] == ("json",) and parts[-1].endswith(".json"):
                    _check_size(path, member.name, member.size)
                    content = tar.extractfile(member)
                    assert content is not None, "it is a file"
                    yield parts[-1], content.read()
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read ({error}): check the path, or fetch the package again.") from None


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_SET_BYTES:
        raise UserError(f"{path}: {name} has {size:,} bytes, more than any set of icons: fetch the package again.")


def _icon_set(content: dict[str, Any], info: dict[str, Any]) -> IconSet:
    prefix, licence = str(content["prefix"]), info["license"]
    names = SetNames(prefix, content.get("suffixes") or {}, content.get("prefixes") or {})
    icons = list(_icons(content, names))
    return IconSet(
        prefix, str(info["name"]), str(info["author"]["name"]), licence["spdx"], str(licence.get("url", "")), icons
    )


def _icons(content: dict[str, Any], names: SetNames) -> Iterator[Icon]:
    """All but hidden ones and brands; an alias that is rotated, flipped or in another box is an icon of its own."""
    icons, aliases = content["icons"], content.get("aliases") or {}
    categories = {name: category for category, held in (content.get("categories") or {}).items() for name in held}
    others: dict[str, list[IconName]] = {}
    plain = {name for name, alias in aliases.items() if set(alias) == {"parent"}}
    for name in aliases:
        if name in plain:
            parent = name
            for _ in range(MOST_PARENTS):
                parent = aliases[parent]["parent"] if parent in plain else parent
            others.setdefault(parent, []).append(names.read(name))
    own = (name for name in aliases if name not in plain)
    for name in [*icons, *own]:
        read, category = names.read(name), categories.get(name, "")
        if is_brand(read.words) or is_brand_category(category):
            continue
        try:
            entry = resolved(name, icons, aliases)
            if not entry.get("hidden"):
                also = tuple(other for other in others.get(name, ()) if not is_brand(other.words))
                yield Icon(name, svg_of(entry, content), read, also, category_words(category))
        except Malformed as malformed:
            yield Icon(name, "", read, problem=str(malformed))
