"""Corpora in other formats, trained on in place through shards that refer to their images, made once in the user's
cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mvlm.config.shipped import package
from mvlm.data.shards.forms import CorpusForm, recognise
from mvlm.data.shards.in_place import MARK
from mvlm.data.shards.schema import MANIFEST
from mvlm.errors import UserError
from mvlm.runtime.commands import run_command
from mvlm.runtime.log import logger

log = logger("mvlm")


def located(place: str | Path) -> Path:
    """The folder of shards for a path: the path itself, or the index of the tar, Arrow or Parquet files there.

    If that index is missing, the first process to come makes it while others wait.

    Raises:
        UserError: the files cannot be trained on as they are, or cannot be read.
    """
    path = Path(place)
    if (path / MANIFEST).is_file():
        return path
    try:
        form = recognise(place)
    except UserError:
        return path  # reading the shards will report that there are none
    if form is None:
        return path
    if not form.stays:
        raise UserError(
            f"{place} cannot be trained on in place: make shards of it with `mvlm-data shard {form.source} "
            f"{shlex.join(map(str, form.paths))} --out SHARDS`, and name those."
        )
    return _index(form, str(place))


def _index(form: CorpusForm, place: str) -> Path:
    folder = _cache() / _name(form)
    if (folder / MANIFEST).is_file():
        return folder
    with _alone(folder.with_suffix(".lock")):
        if not (folder / MANIFEST).is_file():
            log.info("Indexing %s, once; its images stay where they are, the index goes to %s.", place, folder)
            paths = [str(path.absolute()) for path in form.paths]
            command = [sys.executable, "-m", package("data_tools"), "shard", form.source, *paths]
            run_command([*command, "--in-place", "--out", str(folder)], log.info)
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mvlm/in_place"


def _name(form: CorpusForm) -> str:
    """A name that changes with the files of the corpus, by length and time, and with the format of references."""
    known = [form.source, repr(MARK)]
    for file in form.files:
        found = file.stat()
        known.append(f"{file.absolute()} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:24]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Run the block while no other process with the same lock does."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise UserError(f"{lock} cannot be written ({error}): set XDG_CACHE_HOME to a folder that can.") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
