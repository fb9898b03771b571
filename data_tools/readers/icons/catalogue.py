"""What only all sets together can tell: equal drawings, sets of the same designer, and what is held out of training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

from . import words as known
from .names import IconName
from .package import Icon, IconSet

SHARED = 5
"""Equal drawings from which on two sets count as one designer's; a plain circle or bar may be equal by chance."""

HELD_OUT_CONCEPTS, VALIDATION_CONCEPTS, HELD_OUT_DESIGNERS = 0.1, 0.03, 0.2
MOST_HELD_OUT = 0.02
"""A concept or designer with a larger share of all rows is always trained on, so that splits keep about their size."""

SPLITS = ("train", "validation", "concepts", "designers", "both")


class Joined:
    """Names that are joined into groups; a group is called by its first name in alphabetical order."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def join(self, name: str, other: str) -> None:
        first, second = sorted((self.of(name), self.of(other)))
        self._parent[second] = first

    def of(self, name: str) -> str:
        while (parent := self._parent.get(name, name)) != name:
            self._parent[name] = self._parent.get(parent, parent)
            name = parent
        return name


@dataclass
class Twins:
    """A drawing that occurs several times: where it is kept, and what it is called elsewhere."""

    owner: tuple[str, str]  # set, name
    names: list[IconName] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


class Catalogue:
    """Made in one pass over all sets; holds some 200 bytes per icon, and no pictures."""

    def __init__(self, sets: Iterable[IconSet]) -> None:
        self.rows: list[int] = []  # icons of each set, including those that are left out when it is read
        self._twins: dict[bytes, Twins] = {}
        self._designers, self._concepts = Joined(), Joined()
        self._author: dict[str, str] = {}
        self._of_concept, self._of_designer = Counter[str](), Counter[str]()
        self._join(sets)
        self._size = sum(self._of_concept.values())

    def _join(self, sets: Iterable[IconSet]) -> None:
        first: dict[bytes, tuple[str, str, str]] = {}  # set, name, concept
        shared = Counter[tuple[str, str]]()
        concepts, drawn = Counter[str](), Counter[str]()
        for icon_set in sets:
            self.rows.append(len(icon_set.icons))
            self._author[icon_set.prefix] = f"author {icon_set.author}"
            met = set()
            for icon in icon_set.icons:
                if not icon.svg:
                    continue
                for also in icon.others:
                    self._concepts.join(icon.read.concept, also.concept)
                digest, here = drawing_of(icon.svg), (icon_set.prefix, icon.name, icon.read.concept)
                prefix, name, concept = first.setdefault(digest, here)
                if (prefix, name) == here[:2]:
                    concepts[icon.read.concept] += 1
                    drawn[prefix] += 1
                    continue
                twins = self._twins.setdefault(digest, Twins((prefix, name)))
                twins.names += [icon.read, *icon.others]
                twins.ids.append(f"{icon_set.prefix}:{icon.name}")
                self._concepts.join(concept, icon.read.concept)
                if prefix != icon_set.prefix and digest not in met:
                    met.add(digest)
                    shared[prefix, icon_set.prefix] += 1
        alike = [pair for pair, count in shared.items() if count >= SHARED]
        families = [pair for family in known.FAMILIES for pair in combinations(family, 2)]
        for one, other in [*alike, *families]:
            if one in self._author and other in self._author:
                self._designers.join(self._author[one], self._author[other])
        for concept, count in concepts.items():
            self._of_concept[self._concepts.of(concept)] += count
        for prefix, count in drawn.items():
            self._of_designer[self.designer(prefix)] += count

    def designer(self, prefix: str) -> str:
        """The author of a set, or the first of those whose sets share drawings."""
        return self._designers.of(self._author[prefix])

    def group(self, concept: str) -> str:
        """The concept, or the first of those that share drawings."""
        return self._concepts.of(concept)

    def kept(self, prefix: str, icon: Icon) -> Twins | None:
        """What else the icon's drawing is called; None if it is the drawing of an earlier icon."""
        owner = (prefix, icon.name)
        twins = self._twins.get(drawing_of(icon.svg), Twins(owner))
        return twins if twins.owner == owner else None

    def split(self, prefix: str, concept: str) -> str:
        """The split of an icon, a function of its designer and group of concepts alone."""
        designer, group = self.designer(prefix), self.group(concept)
        most = MOST_HELD_OUT * self._size
        point = _point(group) if self._of_concept[group] <= most else 1.0
        held_out = self._of_designer[designer] <= most and _point(designer) < HELD_OUT_DESIGNERS
        if held_out:
            return "both" if point < HELD_OUT_CONCEPTS + VALIDATION_CONCEPTS else "designers"
        if point < HELD_OUT_CONCEPTS:
            return "concepts"
        return "validation" if point < HELD_OUT_CONCEPTS + VALIDATION_CONCEPTS else "train"


def drawing_of(svg: str) -> bytes:
    """A digest that is equal for equal drawings in equal boxes."""
    return hashlib.blake2b(svg.encode("utf-8", "replace"), digest_size=16).digest()


def _point(name: str) -> float:
    """A number in [0, 1), by a hash of the name."""
    return int.from_bytes(hashlib.sha256(f"icons/{name}".encode()).digest()[:8], "big") / 2**64


def opposite_pairs(icon_set: IconSet) -> Iterator[tuple[str, Icon, Icon]]:
    """Pairs of one set: the words exchanged, such as "left/right", and two icons whose names differ only by them.

    Of icons with the same caption, such as sizes of one, the first is taken. If styles are exchanged, the words end in
    " style".
    """
    first: dict[IconName, Icon] = {}
    for icon in icon_set.icons:
        if icon.svg:
            first.setdefault(icon.read, icon)
    for name, icon in first.items():
        for one, other in known.OPPOSITES:
            for at, word in enumerate(name.words):
                if word == one:
                    against = IconName((*name.words[:at], other, *name.words[at + 1 :]), name.styles)
                    if against in first and first[against].svg != icon.svg:
                        yield f"{one}/{other}", icon, first[against]
        for one, other in known.STYLE_OPPOSITES:
            if one in name.styles:
                against = IconName(name.words, tuple(other if style == one else style for style in name.styles))
                if against in first and first[against].svg != icon.svg:
                    yield f"{one}/{other} style", icon, first[against]
