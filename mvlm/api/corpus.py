"""A user's pictures, in whatever form, made into shards to train and evaluate on."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from mvlm.config.shipped import find_example, package
from mvlm.data.shards.forms import CorpusForm, recognise
from mvlm.data.shards.schema import CAPTION, EMPTY_SPLIT, SOURCE, corpora_in, read_manifest
from mvlm.errors import UserError
from mvlm.runtime.commands import run_command

HELD_OUT = "eval"
SHOWN = 3
SPLIT = ("--split", f"train=0.9,{HELD_OUT}=0.1")


@dataclass(frozen=True)
class ShardedCorpus:
    """Attributes:
    train, eval: absolute paths of folders of shards; if `eval` is empty, nothing is held out.
    images: the number to train on.
    """

    train: tuple[str, ...]
    eval: tuple[str, ...]
    images: int


def prepare(data: str | Path, out: Path) -> ShardedCorpus:
    """The shards of a corpus: those in `data`, or new ones made in `out` with a tenth of the images held out.

    Raises:
        UserError: there are no data, their form is unknown, or they cannot be sharded.
    """
    path = find_example(data)
    if found := find_shards(path):
        return found
    if found := find_shards(out):
        _require_source(path, out)
        return found
    form = recognise(path)
    if form is None:
        raise _unrecognised(path)
    words, command = shard_words(form, out), [sys.executable, "-m", package("data_tools")]
    try:
        _shard(command, words)
    except UserError as error:
        again = f"run `mvlm-data {shlex.join(words)}` with them, and then the same call."
        raise UserError(f"{error} To give it options or another source, {again}") from None
    except KeyboardInterrupt:
        print(f"Stopped while {path} was being sharded: the same call resumes.", flush=True)
        raise
    found = find_shards(out)
    if not found:
        raise UserError(f"{path} gave no shards in {out}: look at the messages above, or shard it yourself.")
    return found


def _unrecognised(path: Path) -> UserError:
    if path.suffix.lower() in (".zip", ".7z", ".rar"):
        return UserError(f"{path} is an archive of a kind that is not read: unpack it, and give the folder.")
    entries = path.iterdir() if path.is_dir() else ()
    inside = sorted(each for each in entries if each.is_dir() or each.suffix.lower() in (".csv", ".tsv"))
    corpora = [str(each) for each in inside if recognise(each)]
    if corpora:
        which = "that" if len(corpora) == 1 else "one of them"
        return UserError(f"{path} is not a corpus, but contains {' and '.join(corpora[:SHOWN])}: give {which}.")
    return UserError(
        f"{path} is not recognised as a corpus: give a folder with captions.jsonl or with a text file beside each "
        "picture, tars, a table (CSV, TSV, JSON lines, a JSON list), parquet, or shards that `mvlm-data shard` has "
        "made of it or of another data set's annotations."
    )


def _shard(command: list[str], words: list[str]) -> None:
    try:
        run_command([*command, *words])
    except UserError as error:
        if EMPTY_SPLIT not in str(error):
            raise
        print("Too few pictures to hold out a tenth: all are trained on, and nothing is evaluated.", flush=True)
        run_command([*command, *(word for word in words if word not in SPLIT)])


def _require_source(data: Path, shards: Path) -> None:
    """Raises `UserError` if shards were made from something else. Their source may have been removed or have grown
    since, and its relative paths may start from another folder."""
    try:
        made_of = json.loads((shards / SOURCE).read_text(encoding="utf-8"))["paths"]
    except (OSError, ValueError, KeyError):
        return
    try:
        form = recognise(data)
    except UserError:  # it was removed
        form = None
    asked = [str(path) for path in form.paths] if form else [str(data)]
    if {os.path.realpath(path) for path in made_of} & {os.path.realpath(path) for path in asked}:
        return
    first = made_of[0]
    if any(Path(path).absolute().match(first) or Path(first).absolute().match(path) for path in asked):
        return
    raise UserError(
        f"{shards} was made from {first}, not from {data}: give another `out`, or delete this folder to begin again."
    )


def shard_words(form: CorpusForm, out: Path) -> list[str]:
    """The `data_tools` command that shards a corpus, with a tenth held out."""
    stays = ["--in-place"] if form.stays else []
    return ["shard", form.source, *map(str, form.paths), *SPLIT, *stays, "--out", str(out)]


def find_shards(folder: Path, task: str = CAPTION) -> ShardedCorpus | None:
    """A corpus of shards, divided into splits or not; None if there is none.

    Raises:
        UserError: its rows are for another task.
    """
    parts = corpora_in(folder)
    if not parts:
        return None
    rows = {part: read_manifest(part) for part in parts}
    for part, manifest in rows.items():
        if manifest.task != task:
            wanted = "images with captions" if task == CAPTION else f"shards of {task}"
            raise UserError(f"{part} holds {manifest.task!r} rows: give {wanted}.")
    train = [part for part in parts if part.name != HELD_OUT or len(parts) == 1]
    held_out = [part for part in parts if part not in train]
    images = sum(rows[part].rows for part in train)
    return ShardedCorpus(_from_root(train), _from_root(held_out), images)


def _from_root(folders: list[Path]) -> tuple[str, ...]:
    return tuple(str(folder.absolute()) for folder in folders)
