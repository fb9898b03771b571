"""The blocks of code on the pages that are marked `sh` or `python`, and what the pages say that they need."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *(ROOT / name for name in ("data_tools/README.md", "data_tools/readers/README.md", "ds_configs/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]

NEEDS = {
    *("a GPU", "GPUs", "a cluster", "the network", "a store", "the published data"),
    *("Docker", "Apptainer", "minutes", "hours"),
}
"""What not every machine has; a comment `# needs ...` says so about everything below it in its block."""

NEED = "# needs "
PROGRAMS = {"mvlm": "mvlm", "mvlm-data": "data_tools", "mvlm-cluster": "cluster"}
LAUNCHERS = ("python", "deepspeed", "torchrun", "srun")


@dataclass(frozen=True)
class Command:
    """One line of a page, continued lines joined.

    Attributes:
        page: relative to the project's root.
        needs: what the page says that it needs; "" if any machine can run it.
    """

    page: str
    line: str
    needs: str

    def calls(self) -> list[list[str]]:
        """The program and words of each of our commands in the line."""
        return list(filter(None, map(_own, self._parts())))

    @property
    def is_ours(self) -> bool:
        return all(map(_own, self._parts()))

    def _parts(self) -> list[list[str]]:
        return [shlex.split(part, comments=True) for part in self.line.split(" && ")]


@dataclass(frozen=True)
class Script:
    """A block of Python; `needs`, as of a command, comes from its first line."""

    text: str
    needs: str


def _own(words: list[str]) -> list[str]:
    """A command from the program's name on, without its launcher; nothing for a command that is not ours."""
    if words[0] in PROGRAMS:
        return [PROGRAMS[words[0]], *words[1:]]
    if words[0] in LAUNCHERS:
        for flag in ("-m", "--module"):
            if flag in words and words[words.index(flag) + 1] in PROGRAMS.values():
                return words[words.index(flag) + 1 :]
    return []


def languages(page: Path) -> list[str]:
    """The language that each block of code names."""
    return [language for language, _ in _blocks(page)]


def blocks_to_run(page: Path) -> Iterator[list[Command] | Script]:
    """The blocks of a page from top to bottom."""
    for language, text in _blocks(page):
        if language == "sh":
            yield list(_commands(page, text))
        elif language == "python":
            first, _, _ = text.partition("\n")
            yield Script(text, first.removeprefix(NEED) if first.startswith(NEED) else "")


def shell_blocks(page: Path) -> list[list[Command]]:
    return [block for block in blocks_to_run(page) if not isinstance(block, Script)]


def shell_commands() -> list[Command]:
    """The commands of all pages."""
    return [command for page in PAGES for block in shell_blocks(page) for command in block]


def _commands(page: Path, text: str) -> Iterator[Command]:
    needs = ""
    for line in map(str.strip, re.sub(r"\\\n\s*", "", text).splitlines()):
        if line.startswith(NEED):
            needs = line.removeprefix(NEED)
        elif line and not line.startswith("#"):
            yield Command(page.relative_to(ROOT).as_posix(), line, needs)


def _blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text; fences begin and end blocks in turn."""
    parts = re.split(r"^ *```(.*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    yield from zip(parts[1::4], parts[2::4], strict=True)


def toml_block(page: str, word: str) -> str:
    """The first block of TOML on a page that contains the word."""
    return next(text for language, text in _blocks(ROOT / page) if language == "toml" and word in text)
