"""From an icon's name to its caption: words, without the maker's bookkeeping, and styles named alike in all sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import words as known


@dataclass(frozen=True)
class IconName:
    """What a name says is drawn, and in which styles: ("arrow", "left"), ("filled",)."""

    words: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def caption(self) -> str:
        return " ".join((*self.words, *(style for style in self.styles if style not in self.words)))

    @property
    def concept(self) -> str:
        """The name without style, direction and other words of an opposite, unless nothing else is left: icons of one
        concept are trained on together or held out together."""
        return " ".join([word for word in self.words if word not in known.OPPOSITE_WORDS] or self.words)


class SetNames:
    """How the names of one set are read.

    Args:
        prefix: of the set.
        suffixes, prefixes: titles of the styles and sizes that the set declares, by the end or beginning of a name;
            the title of "" is the style of all other names.
    """

    def __init__(self, prefix: str, suffixes: Mapping[str, str], prefixes: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._suffixes = {tuple(end.split("-")): self._styles(title) for end, title in suffixes.items() if end}
        self._prefixes = {start: self._styles(title) for start, title in prefixes.items() if start}
        self._default = self._styles(suffixes.get("", ""))
        self._ends = {word: known.STYLES[word] for word in known.TRAILING_STYLES}
        self._ends |= known.SET_SUFFIXES.get(prefix, {})

    def _styles(self, title: str) -> list[str]:
        said = re.split(r"[\s-]+", title.lower().replace("two-tone", "twotone").replace("two tone", "twotone"))
        regular = known.REGULAR_STYLES.get(self._prefix)
        styles = [regular if word == "regular" else known.STYLES.get(word) for word in said]
        return [style for style in styles if style]

    def read(self, name: str) -> IconName:
        words = [word for word in name.lower().split("-") if word]
        styles: list[str] = []
        declared = False
        if len(words) > 1 and words[0] in self._prefixes:
            styles += self._prefixes[words.pop(0)]
            declared = True
        end = next((end for end in (tuple(words[at:]) for at in range(1, len(words))) if end in self._suffixes), None)
        if end:
            words = words[: -len(end)]
            styles += self._suffixes[end]
            declared = True
        trailing = []
        while len(words) > 1 and words[-1] in self._ends:
            trailing.append(self._ends[words.pop()])
        styles += trailing[::-1]
        if not declared and not trailing:
            styles += self._default
        if self._prefix in known.SET_STYLES:
            styles.append(known.SET_STYLES[self._prefix])
        return IconName(tuple(self._subject(words)), tuple(dict.fromkeys(styles)))

    def _subject(self, words: list[str]) -> list[str]:
        kept = [word for word in words if word not in known.DROPPED_WORDS]
        while len(kept) > 1 and (
            re.fullmatch(r"0\d", kept[-1]) or (self._prefix in known.COUNTED_SETS and kept[-1] in known.COUNTERS)
        ):
            kept.pop()
        return kept or words


def is_brand(words: Iterable[str]) -> bool:
    return not known.BRAND_WORDS.isdisjoint(words)


def is_brand_category(category: str) -> bool:
    parts = {part.strip() for part in category.lower().split("/")}
    return not known.BRAND_CATEGORY.isdisjoint(parts | set(category.lower().split()))


def category_words(category: str) -> str:
    """ "Account / User" as "account user"."""
    return " ".join(re.findall(r"[a-z0-9]+", category.lower()))
