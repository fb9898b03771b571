"""The icons of the npm package `@iconify/json`, and pairs of them whose names differ by a word and its opposite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm.errors import UserError

from ..part import Cursor, Unit
from ..record import Dropped, Record
from .icons.catalogue import Catalogue, Twins, drawing_of, opposite_pairs
from .icons.drawing import to_copy
from .icons.names import IconName
from .icons.package import Icon, IconSet, icon_sets
from .icons.render import Renderer
from .images import Refused
from .source import Cuttable

PICTURE_BYTES = 1200
"""Of an icon's PNG, roughly."""

STYLE = " style"


class IconifySource(Cuttable):
    """PATH is the archive (`npm pack @iconify/json`) or folder of the package. Icons of free sets, not logos, are drawn
    at 64 pixels; fields: set, name, title, author, licence, licence_url, category, concept, group, designer, also, svg,
    and split (train, validation, concepts, designers, both), for --split and --split-by. Needs mvlm[icons].
    """

    def __init__(self, paths: list[Path]) -> None:
        if len(paths) != 1:
            raise UserError(f"iconify reads one package, not {len(paths)}: give the path of one.")
        self.path = paths[0]
        self.renderer = Renderer()
        self.catalogue = Catalogue(icon_sets(self.path))
        self.size = PICTURE_BYTES * sum(self.catalogue.rows)

    def units(self) -> Iterator[Unit]:
        """The icons of all sets."""
        for number, rows in enumerate(self.catalogue.rows):
            yield from (((number, row), PICTURE_BYTES) for row in range(rows))

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        self.position = 0
        skipped = start[0] if start else 0
        for number, icon_set in enumerate(icon_sets(self.path, skipped), skipped):
            for row, icon in enumerate(icon_set.icons):
                if (number, row) < start:
                    continue
                if end is not None and (number, row) >= end:
                    return
                self.position += PICTURE_BYTES
                if self.only is None or _where(icon_set, icon) in self.only:
                    yield from self._records(icon_set, icon)

    def _records(self, icon_set: IconSet, icon: Icon) -> Iterator[Record | Dropped]:
        """One, or none if an earlier icon has the same drawing."""
        key, where = f"{icon_set.prefix}:{icon.name}", _where(icon_set, icon)
        twins = self.catalogue.kept(icon_set.prefix, icon) if icon.svg else None
        if icon.problem:
            yield Dropped(key, icon.problem, where, source=icon_set.prefix)
        elif twins:
            try:
                image = self.renderer.png(icon.svg)
            except Refused as refused:
                yield Dropped(key, str(refused), where, source=icon_set.prefix)
            else:
                fields = about(self.catalogue, icon_set, icon, twins) | {"svg": to_copy(icon.svg)}
                yield Record(key, image, captions(icon, twins), icon_set.prefix, fields, where)


class IconifyFoilsSource(Cuttable):
    """PATH as for iconify. Rows of the task foils, two for each held-out pair of icons of one set: each with its own
    caption and the other's; field foils (opposites, styles, and opposites of validation), for --split and --split-by.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._icons = IconifySource(paths)
        self.size = self._icons.size

    def units(self) -> Iterator[Unit]:
        """The sets."""
        rows = self._icons.catalogue.rows
        yield from (((number,), PICTURE_BYTES * count) for number, count in enumerate(rows))

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        self.position = 0
        first = start[0] if start else 0
        for number, icon_set in enumerate(icon_sets(self._icons.path, first), first):
            if end is not None and (number,) >= end:
                return
            self.position += PICTURE_BYTES * len(icon_set.icons)
            for kind, one, other in opposite_pairs(icon_set):
                yield from self._pair(icon_set, kind, one, other)

    def _pair(self, icon_set: IconSet, kind: str, one: Icon, other: Icon) -> Iterator[Record | Dropped]:
        """Both icons, or neither if one cannot be drawn, both look the same, or they are trained on."""
        catalogue = self._icons.catalogue
        splits = {catalogue.split(icon_set.prefix, icon.read.concept) for icon in (one, other)}
        if "train" in splits or len(splits) > 1:
            return
        foils = "styles" if kind.endswith(STYLE) else "validation" if "validation" in splits else "opposites"
        try:
            images = [self._icons.renderer.png(icon.svg) for icon in (one, other)]
        except Refused:
            return  # the other source lists it
        if images[0] == images[1]:
            return
        for icon, against, image in ((one, other, images[0]), (other, one, images[1])):
            key, where = f"{icon_set.prefix}:{icon.name}/{against.name}", f"{_where(icon_set, icon)}/{against.name}"
            if self.only is not None and where not in self.only:
                continue
            fields = about(catalogue, icon_set, icon, Twins((icon_set.prefix, icon.name))) | {"foils": foils}
            swapped = kind.removesuffix(STYLE)
            columns = {"caption": icon.read.caption, "foil": against.read.caption, "swapped": swapped}
            yield Record(key, image, (), icon_set.prefix, fields, where, columns=columns)


def captions(icon: Icon, twins: Twins) -> list[str]:
    """What the drawing is called, in this set first, then its name with its category if it has one."""
    names: list[IconName] = [icon.read, *icon.others, *twins.names]
    said = dict.fromkeys(name.caption for name in names)
    if icon.category:
        said[f"{icon.read.caption}, {icon.category}"] = None
    return list(said)


def about(catalogue: Catalogue, icon_set: IconSet, icon: Icon, twins: Twins) -> dict[str, Any]:
    """The metadata of a row."""
    concept = icon.read.concept
    return {
        "set": icon_set.prefix,
        "name": icon.name,
        "title": icon_set.title,
        "author": icon_set.author,
        "licence": icon_set.licence,
        "licence_url": icon_set.licence_url,
        "category": icon.category,
        "styles": " ".join(icon.read.styles),
        "concept": concept,
        "group": catalogue.group(concept),
        "designer": catalogue.designer(icon_set.prefix).removeprefix("author "),
        "drawing": drawing_of(icon.svg).hex(),
        "also": " ".join(twins.ids),
        "split": catalogue.split(icon_set.prefix, concept),
    }


def _where(icon_set: IconSet, icon: Icon) -> str:
    return f"{icon_set.prefix}.json:{icon.name}"
