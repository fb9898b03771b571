"""Brings the mirror's newest checkpoint, and the best, into the run folder, as if they had always been there."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

from mvlm.checkpoint.assemble import assemble_newest
from mvlm.checkpoint.description import CONFIG, DESCRIPTION, RECORDS, TEXT_ENCODER, TOKENIZER
from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.integrity import find_damage
from mvlm.checkpoint.layout import (
    CHECKPOINTS,
    INDEX,
    LATEST,
    UNREADABLE,
    Entry,
    read_index,
    step_folders,
    step_name,
    step_of,
)
from mvlm.checkpoint.mirror import Mirror, MirrorPath, read_entries
from mvlm.checkpoint.placing import UNFINISHED, finish, make_ready, name_latest, on_each, set_damaged_aside
from mvlm.errors import UserError
from mvlm.runtime import dist
from mvlm.runtime.log import log
from mvlm.runtime.storage import sync, write_durably


def fetch_newest(mirror: Mirror, run: Path, group: FolderGroup, memory: Path | None = None) -> bool:
    """Fetch it if the run folder has no checkpoint, an older one, or the same one damaged; all ranks must call.

    Nodes with folders of their own each lack what the others wrote, so the mirror alone decides, and each folder gets
    the files that it lacks. If such nodes keep copies of each other's files in `memory`, and have all files between
    them, the checkpoint is assembled from those instead.

    Returns:
        Whether there is a checkpoint.

    Raises:
        UserError: the mirror cannot be read or is not to be trusted, none of its checkpoints is whole, or the folder
            cannot be written.
    """
    history = dist.as_rank_0(mirror.history)
    reason = ""
    newest = next(iter(history), None)
    if memory and not group.is_whole and (there := assemble_newest(mirror, run, group, memory, newest)):
        _fetch_best(mirror, [each for each in history if each.step < there.step], run, group)
        _fetch_small_files(mirror, there, run, group)
        return True
    for remote in history:
        if group.is_whole and not _is_behind(run, remote):
            return True
        began = time.monotonic()
        _fetch_best(mirror, [each for each in history if each.step < remote.step], run, group)
        if not (reason := _fetch(mirror, remote, run, group) or ""):
            on_each(run, group.leads, partial(name_latest, run / CHECKPOINTS / step_name(remote.step)))
            _fetch_small_files(mirror, remote, run, group)
            log.info(f"{mirror.url}/{remote.path()} was fetched into {run} in {time.monotonic() - began:.1f} s.")
            return True
        log.warning(f"{mirror.url}/{remote.path()} is damaged ({reason}): the run resumes from an older checkpoint.")
    if history:
        raise UserError(
            f"{mirror.url}/{history[-1].path()} is damaged ({reason}), and there is no older one: set another mirror."
        )
    return False


def _fetch_best(mirror: Mirror, older: list[MirrorPath], run: Path, group: FolderGroup) -> None:
    """Fetch the best checkpoint, if it is one of `older`; the run can resume without it."""
    name = dist.as_rank_0(mirror.best)
    for remote in (each for each in older if Path(each.path()).name == name):
        there = run / CHECKPOINTS / step_name(remote.step) / INDEX
        if group.is_whole and dist.as_rank_0(there.is_file):
            continue
        if reason := _fetch(mirror, remote, run, group):
            log.warning(f"{mirror.url}/{remote.path()}, the best checkpoint, is damaged ({reason}): it is left there.")


def _is_behind(run: Path, newest: MirrorPath) -> bool:
    step = dist.as_rank_0(lambda: _newest_step(run))
    if step == newest.step:
        return find_damage(run / CHECKPOINTS / step_name(step)) is not None
    return step < newest.step


def _newest_step(run: Path) -> int:
    """The highest step in the run folder, -1 for none. Those beyond `latest` count: somebody chose to go back."""
    return max((step_of(folder) for folder in step_folders(run) if (folder / INDEX).is_file()), default=-1)


def _fetch(mirror: Mirror, remote: MirrorPath, run: Path, group: FolderGroup) -> str | None:
    """Put a checkpoint into the folders of all groups; returns what is wrong with it, if anything."""
    where = f"{mirror.url}/{remote.path(INDEX)}"
    index = dist.as_rank_0(lambda: mirror.read(remote.path(INDEX)))
    try:
        entries = read_entries(index, where) if index else []
    except UNREADABLE as error:
        return f"{INDEX}: {type(error).__name__}: {error}"
    if not index:
        return f"{INDEX} is gone"
    folder = run / CHECKPOINTS / step_name(remote.step)
    unfinished = folder.with_name(folder.name + UNFINISHED)
    on_each(run, group.leads, partial(make_ready, folder, unfinished))
    failure = on_each(run, True, partial(_fetch_files, mirror, remote, group.share(entries), unfinished))
    if failure:
        on_each(run, group.leads, partial(shutil.rmtree, unfinished))
    else:
        on_each(run, group.leads, partial(finish, folder, unfinished, entries, index))
    return failure


def _fetch_files(mirror: Mirror, remote: MirrorPath, entries: list[Entry], unfinished: Path) -> str | None:
    for entry in entries:
        file = unfinished / entry.file
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or entry.damage(unfinished):
            mirror.download(remote.path(entry.file), file)
            if not file.is_file():
                return f"{entry.file} is gone"
            if damage := entry.damage(unfinished):
                return damage
            sync(file)
    return None


def _fetch_small_files(mirror: Mirror, remote: MirrorPath, run: Path, group: FolderGroup) -> None:
    def fetch_description() -> None:
        if (run / CHECKPOINTS / step_name(remote.step) / CONFIG).exists():
            return  # only a checkpoint from before version 0.1 lacks these
        for name in (CONFIG, *mirror.sizes(TOKENIZER), *mirror.sizes(TEXT_ENCODER)):
            if DESCRIPTION.fullmatch(name):
                (run / name).parent.mkdir(exist_ok=True)
                mirror.download(name, run / name)
                sync((run / name).parent)

    def fetch_records() -> None:
        for name in RECORDS:  # the longer one has more
            known = (run / name).stat().st_size if (run / name).exists() else 0
            content = mirror.read(name) or b""
            if len(content) > known:
                write_durably(run / name, content.decode(errors="replace"))

    on_each(run, group.leads, fetch_description)
    on_each(run, dist.rank() == 0, fetch_records)


def begin_without(mirror: Mirror, run: Path, group: FolderGroup) -> None:
    """Make sure that a run whose mirror is still empty starts in the same way on all nodes; all ranks must call.

    If nodes have folders of their own, an earlier attempt may have left parts of a checkpoint in them.

    Raises:
        UserError: one node has a whole checkpoint.
    """
    if group.is_whole:
        return
    if whole := on_each(run, group.leads, partial(_own_whole, run)):
        raise UserError(
            f"{whole} is whole on one node, and neither the others nor {mirror.url} have it: start the run on that "
            "node alone first, which uploads it."
        )
    on_each(run, group.leads, partial(_set_parts_aside, run))


def _own_whole(run: Path) -> str | None:
    def has_all(checkpoint: Path) -> bool:
        try:
            return all((checkpoint / entry.file).exists() for entry in read_index(checkpoint))
        except UNREADABLE:
            return False

    return next((str(folder) for folder in step_folders(run) if has_all(folder)), None)


def _set_parts_aside(run: Path) -> None:
    (run / CHECKPOINTS / LATEST).unlink(missing_ok=True)
    for folder in step_folders(run):
        set_damaged_aside(folder)
