"""Where a run's checkpoints lie, and which of them is the latest.

A checkpoint is a folder `checkpoints/step_NNNNNNNN` with `weights-*.safetensors` (fp32, by parameter name),
`moments-*.safetensors` (AdamW's, as `exp_avg/<name>` and `exp_avg_sq/<name>`; may be deleted), `ema-*.safetensors` if
the run averages its weights (the average, by parameter name), `state.json` and `index.json`. The index lists every
file with its length and hash, who wrote the checkpoint, and its format, which determines the parameters' names. Each
rank's files have what only that rank holds: where ZeRO splits a tensor, a flattened part of it, with the tensor's shape
and the part's start in the file's metadata; where ranks split layers, a part of a cut of it (mvlm/checkpoint/cut.py).
The description of the weights lies there as well, under the names that it has in the run folder
(mvlm/checkpoint/description.py), except in one from before version 0.1. `checkpoints/latest` holds the name of the
checkpoint to resume from, and `checkpoints/best` that of the best by `eval.select`, if there is one.
Beside the checkpoints may lie, from the run's attempt A, `step_N.partial-A`, being written, `step_N.deleted-A`, being
deleted, and `step_N.aside-A`, another run's that was in the way of attempt A; also `step_N.damaged`. A copy of a mirror
has `step_N.attempt-A`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mvlm.config.parameters import FORMAT
from mvlm.errors import OUT_OF_SIGHT, StorageLost, UserError
from mvlm.runtime.log import log

CHECKPOINTS, LATEST, BEST, INDEX = "checkpoints", "latest", "best", "index.json"
STATE, ATTEMPTS = "state.json", "attempts"
WEIGHTS, MOMENTS, EMA = "weights", "moments", "ema"
UNREADABLE = (OSError, ValueError, TypeError, KeyError)  # what reading a damaged JSON file may raise

STEP = re.compile(r"step_(\d{8})(?:\.attempt-(\d{1,9}))?")
LONGEST_NAME = 64  # bytes of `latest` that are read


@dataclass(frozen=True)
class Entry:
    """A file of a checkpoint as index.json names it."""

    file: str
    bytes: int
    sha256: str

    def damage(self, checkpoint: Path, hashes: bool = True) -> str:
        """What is wrong with it in that folder, "" for nothing; raises OSError if it cannot be read.

        Args:
            hashes: False compares lengths alone.
        """
        with open(checkpoint / self.file, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != self.bytes:
                return f"{self.file} has {size} bytes and not the {self.bytes} of {INDEX}"
            if hashes and hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                return f"{self.file} does not have the SHA-256 that {INDEX} says"
        return ""


@dataclass(frozen=True)
class Writer:
    """Who wrote a checkpoint: an attempt, and its chain of attempts, each of which resumed the one before."""

    chain: str
    attempt: int


@dataclass(frozen=True)
class Candidates:
    """What a run may be resumed from.

    Attributes:
        first: the folder that `latest` names, whole or not; if `latest` is unusable, the one of the highest step.
        others: those of lower steps, highest first, to try if `first` is not whole.
        problem: what is wrong with `latest`, as the beginning of a sentence; "" for nothing.
    """

    first: Path
    others: tuple[Path, ...]
    problem: str


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The number in a step folder's name."""
    return _order(folder.name)[0]


def step_folders(run: Path) -> list[Path]:
    """The step folders of a run, whole or not, highest step first.

    Raises:
        UserError: the run's folder cannot be read; StorageLost if it cannot be reached.
    """
    home = run / CHECKPOINTS
    try:
        names = sorted(filter(STEP.fullmatch, os.listdir(home)), key=_order, reverse=True)
        return [home / name for name in names if (home / name).is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _cannot_read(home, error) from None


def has_checkpoints(run: Path) -> bool:
    """Whether a run has, or once had, something to resume from; such a run never starts from scratch."""
    return os.path.lexists(run / CHECKPOINTS / LATEST) or bool(step_folders(run))


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint that `best` names; None if a run has none."""
    pointer = run / CHECKPOINTS / BEST
    try:
        folder = pointer.with_name(read_name(pointer))
    except (OSError, ValueError):
        return None
    return folder if (folder / INDEX).is_file() else None


def run_of_best(path: Path) -> Path | None:
    """The run whose best checkpoint a path means, `RUN/best` or the file that names it; None for any other path."""
    if path.name != BEST or path.is_dir():
        return None
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def candidates(run: Path) -> Candidates:
    """What a run may be resumed from, by what `latest` names or, if that is unusable, by the step folders there are.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    named, problem = _read_latest(run / CHECKPOINTS / LATEST)
    steps = step_folders(run)
    if named:
        return Candidates(named, tuple(folder for folder in steps if step_of(folder) < step_of(named)), "")
    if not steps:
        raise UserError(
            f"{problem}, and no step folder lies beside it: bring the run's checkpoints back, or set another run.dir "
            "to start over."
        )
    return Candidates(steps[0], tuple(steps[1:]), problem)


def find_checkpoint(path: str | Path, setting: str = "") -> Path:
    """The checkpoint that `path` means: itself, the latest of a run folder, or for `RUN/best` the run's best.

    If the file `latest` is unusable, the newest whole checkpoint is taken and a warning says so.

    Args:
        setting: the setting that gave the path, if any, for the message.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        return path
    if run := run_of_best(path):
        if best := best_checkpoint(run):
            return best
        raise UserError(f"{run} has no best checkpoint: give the run folder, or train with eval.select.")
    if not has_checkpoints(path):
        named = f" ({setting})" if setting else ""
        raise UserError(
            f"No checkpoint at {path}{named}: give a run folder or one of its checkpoints/step_... folders."
        )
    found = candidates(path)
    if not found.problem:
        if (found.first / INDEX).is_file():
            return found.first
        raise UserError(
            f"{found.first}, which latest names, is not a checkpoint: write a whole one's name into latest."
        )
    for folder in (found.first, *found.others):
        if not find_damaged_file(folder, hashes=False):
            _report_once(f"{found.problem}: {folder.name} is used, the newest whole checkpoint.")
            return folder
    raise UserError(f"{found.problem}, and no step folder beside it is whole: bring a whole one back.")


def read_index(checkpoint: Path) -> list[Entry]:
    """The files of a checkpoint; raises one of UNREADABLE if index.json is damaged."""
    content = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))
    return [Entry(**entry) for entry in content["files"]]


def read_format(checkpoint: Path) -> int:
    """The format of a checkpoint; raises `UserError` if this version does not know it."""
    number = json.loads((checkpoint / INDEX).read_text(encoding="utf-8")).get("format", 1)
    if number not in range(1, FORMAT + 1):
        raise UserError(f"{checkpoint} has the format {number!r}, which is unknown to this version: update mvlm.")
    return int(number)


def read_writer(checkpoint: Path) -> Writer | None:
    """Who wrote a checkpoint; None if that is not known, or if it lies elsewhere behind a symbolic link."""
    if checkpoint.is_symlink():
        return None
    try:
        by = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))["written_by"]
        return Writer(str(by["chain"]), int(by["attempt"]))
    except UNREADABLE:
        return None


def is_moments(entry: Entry) -> bool:
    return entry.file.startswith(MOMENTS)


def has_moments(checkpoint: Path) -> bool:
    """Whether any of the optimiser's files is there; raises one of UNREADABLE if index.json is damaged."""
    return any((checkpoint / entry.file).exists() for entry in read_index(checkpoint) if is_moments(entry))


def find_damaged_file(checkpoint: Path, hashes: bool, share: slice = slice(None)) -> str | None:
    """What is wrong with the files that index.json names, if anything. Moments that were all deleted do not count.

    Args:
        hashes: False compares lengths alone.
        share: which of the files to check.

    Raises:
        StorageLost: it cannot be reached.
    """
    try:
        with_moments = has_moments(checkpoint)  # once, since an index may list a thousand files
        files = [entry for entry in read_index(checkpoint) if with_moments or not is_moments(entry)]
        files.sort(key=lambda entry: -entry.bytes)  # so that ranks read equal amounts, whatever the kinds' sizes
        return next(filter(None, (entry.damage(checkpoint, hashes) for entry in files[share])), None)
    except UNREADABLE as error:
        return damage(checkpoint, error)


def damage(checkpoint: Path, error: Exception) -> str:
    """What is wrong with a checkpoint, from one of UNREADABLE.

    Raises:
        StorageLost: it cannot be reached, and may be whole.
    """
    is_of_bad_sector = isinstance(error, OSError) and error.errno == errno.EIO
    if isinstance(error, OSError) and error.errno in OUT_OF_SIGHT and not is_of_bad_sector:
        raise _cannot_read(checkpoint, error) from None
    return f"{type(error).__name__}: {error}"


def _read_latest(latest: Path) -> tuple[Path | None, str]:
    """The step folder that `latest` names, or None and what is wrong with it."""
    try:
        name = read_name(latest)
        while not latest.with_name(name).is_dir():
            again = read_name(latest)
            if again == name:
                return None, f"{latest} names {latest.with_name(name)}, which is not there"
            name = again  # a live attempt has saved another, and deleted the one that was named
    except ValueError as error:
        return None, f"{latest} {error}"
    except OSError as error:
        if error.errno in OUT_OF_SIGHT:
            raise _cannot_read(latest, error) from None
        return None, f"{latest} cannot be read ({error.strerror})"
    return latest.with_name(name), ""


def read_name(latest: Path) -> str:
    """Raises: ValueError: what is wrong with `latest`."""
    if latest.is_symlink():
        raise ValueError("is a symbolic link")
    if not latest.exists():
        raise ValueError("is missing")
    if not latest.is_file():
        raise ValueError("is not a file")
    with open(latest, "rb") as file:
        name = file.read(LONGEST_NAME).decode(errors="replace").strip()
    if not STEP.fullmatch(name):
        raise ValueError("names no step" if name else "is empty")
    return name


def _order(name: str) -> tuple[int, int]:
    found = STEP.fullmatch(name)
    assert found, name
    return int(found[1]), int(found[2] or 0)


def _cannot_read(path: Path, error: OSError) -> UserError:
    if error.errno in OUT_OF_SIGHT:
        return StorageLost(f"{path} cannot be reached ({error}): start the same command again where it can be.")
    return UserError(f"{path} cannot be read ({error}): change its permissions, or set another run.dir.")


@functools.cache  # a command may ask more than once
def _report_once(sentence: str) -> None:
    log.warning(sentence)
