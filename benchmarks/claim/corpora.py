"""The corpora: shards cut into parts that make nested shares: the half has the quarter, and that the tenth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claim import world
from benchmarks.claim.grid import EMOJI, SCENES
from data_tools.__main__ import main as data_tools
from data_tools.pipeline import Options
from data_tools.sharding import shard
from data_tools.split import parse_split
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import MANIFEST, read_manifest
from mvlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = (SCENES, EMOJI)
FOILS, QUESTIONS = "foils", "questions"

PARTS = {100: ("p10", "p25", "p50", "p100"), 50: ("p10", "p25", "p50"), 25: ("p10", "p25"), 10: ("p10",)}
"""The parts that make each share of the training pairs."""
EVAL = "eval"
MADE_OF = "made_of.txt"  # the sources of a user's corpus, a line each
EMOJI_ARCHIVE = "examples/emoji.tar"
_OF_TRAINING = {"p10": 0.10, "p25": 0.15, "p50": 0.25, "p100": 0.50}

HELD_OUT, HELD_OUT_SCENES = 0.15, 0.25
"""Shares to test on: more of scenes, since both of a pair of foils must be held out."""
MOST_HELD_OUT = 5000  # rows of a large corpus
ALONE = ("--workers", "1")


@dataclass(frozen=True)
class Corpus:
    """Args:
    folder: of the parts.
    foils: shards of swapped-attribute foils; None if the corpus has none.
    questions: folder of the same parts with questions; None if the corpus has none.
    words: to hide; if empty, tokens are drawn as in training.
    """

    name: str
    folder: Path
    foils: Path | None = None
    questions: Path | None = None
    words: tuple[str, ...] = ()

    def train(self, share: int, tune: str = "") -> list[str]:
        """Shards to train on, or to fine-tune on."""
        return [str(self._of(tune) / part) for part in PARTS[share]]

    def eval(self, tune: str = "") -> str:
        return str(self._of(tune) / EVAL)

    def _of(self, tune: str) -> Path:
        return self.questions if tune == "vqa" and self.questions else self.folder


def prepare(name: str, source: str, folder: Path) -> Corpus:
    """The corpus `name`, made in `folder` unless it is there.

    Args:
        source: "" for a bundled one; else shards, or archives and folders of captioned pictures, separated by commas.

    Raises:
        UserError: there is no such corpus, or it cannot be made.
    """
    _check_name(name, source)
    out = folder / name
    if name == SCENES:
        foils, questions = folder / FOILS, folder / QUESTIONS
        in_parts = Options(split=parse_split(_split(HELD_OUT_SCENES), "group"))
        if not out.exists():
            shard(world.captioned(), out, in_parts)
        if not questions.exists():
            shard(world.questions(), questions, in_parts)
        if not foils.exists():
            held_out = Mixture([out / EVAL])
            shard(world.foils({held_out.row(row).key for row in range(len(held_out))}), foils, Options())
        return Corpus(name, out, foils, questions, world.WORDS)
    sources = [str(Path(path).resolve()) for path in source.split(",")] if source else [str(ROOT / EMOJI_ARCHIVE)]
    if not out.exists():
        _cut(name, sources, out)  # in one move: a kill before the next line leaves it complete, only its source unknown
        (out / MADE_OF).write_text("\n".join(sources), encoding="utf-8")
    elif source and (made_of := _read_if_there(out / MADE_OF)) not in (sources, []):
        raise UserError(
            f"--corpus {name} in {folder} was made from {','.join(made_of)}: choose another name for {source}, "
            f"or delete {out}."
        )
    return Corpus(name, out)


def _check_name(name: str, source: str) -> None:
    """Checks a name, which is a folder's and the first part of its cells' names."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"--corpus {name}: a name has letters, digits, _ and - only, such as my_pictures=SHARDS.")
    if source and name in (*BUNDLED, FOILS, QUESTIONS):
        raise UserError(f"--corpus {name}={source}: {name} is the name of bundled data, choose another.")
    if not source and name not in BUNDLED:
        raise UserError(
            f"--corpus {name} is not bundled: write --corpus {name}=SHARDS, or one of {', '.join(BUNDLED)}."
        )


def _read_if_there(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _cut(name: str, paths: list[str], out: Path) -> None:
    if not (Path(paths[0]) / MANIFEST).is_file():
        parts = ("--split", _split(HELD_OUT), "--split-by", "group")
        _call(name, "shard", "folder", *paths, *parts, "--out", str(out), *ALONE)
        return
    if len(paths) > 1:
        raise UserError(f"--corpus {name}: give one folder of shards; `data_tools merge` joins several.")
    held_out = min(HELD_OUT, MOST_HELD_OUT / read_manifest(paths[0]).rows)
    _call(name, "split", paths[0], "--split", _split(held_out), "--split-by", "crc32", "--out", str(out))


def _split(held_out: float) -> str:
    training = (f"{part}={share * (1 - held_out):.6f}" for part, share in _OF_TRAINING.items())
    return ",".join([*training, f"{EVAL}={held_out:.6f}"])


def _call(name: str, *words: str) -> None:
    if data_tools(list(words)):
        raise UserError(f"--corpus {name} was not made: `data_tools {words[0]}` says why above.")
