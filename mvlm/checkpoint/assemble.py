"""Assembles the newest checkpoint in every node's run folder from what the nodes hold, without reading the mirror.

After the loss of a node, each surviving node has its own files, and the node after the lost one has copies of that
one's in memory (mvlm/checkpoint/peers.py). A file counts only if it has its hash in the checkpoint's index.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.layout import CHECKPOINTS, INDEX, LATEST, STEP, UNREADABLE, Entry, step_of
from mvlm.checkpoint.mirror import Mirror, MirrorPath, read_entries
from mvlm.checkpoint.peers import open_to_read, receive_file, send_file
from mvlm.checkpoint.placing import UNFINISHED, finish, make_ready, name_latest, on_each
from mvlm.runtime import dist
from mvlm.runtime.log import log
from mvlm.runtime.storage import sync


class Transfer(NamedTuple):
    """A file on its way from one node to another."""

    entry: Entry
    sender: int
    receiver: int


def assemble_newest(
    mirror: Mirror, run: Path, group: FolderGroup, memory: Path, newest: MirrorPath | None
) -> MirrorPath | None:
    """Assemble it if it is no older than the mirror's newest; all ranks must call.

    Returns:
        The checkpoint, as the mirror names it; None if it cannot be assembled. Then nothing has changed, except that
        some of its files may lie ready, which the mirror completes.

    Raises:
        UserError: the run folder cannot be written.
    """
    began = time.monotonic()
    if not (common := _common_index(run, group)):
        return None
    name, index = common
    folder = run / CHECKPOINTS / name
    try:
        entries, found = read_entries(index, str(folder / INDEX)), MirrorPath(_attempt(index), step_of(folder))
    except UNREADABLE:
        return None
    if not dist.as_rank_0(lambda: _is_current(mirror, found, newest, index)):
        return None
    unfinished = folder.with_name(name + UNFINISHED)
    held = _find_undamaged(group.share(entries), [folder, unfinished, memory / folder.name])
    told = dist.gather_objects((group.ranks, sorted(held)))
    transfers, lacking = plan_transfers(entries, told)
    if lacking:
        log.warning(f"No node has all of {folder.name}'s {lacking[0]} any more: the mirror is read.")
        return None
    on_each(run, group.leads, partial(make_ready, folder, unfinished))
    on_each(run, True, partial(_copy_found, held, unfinished))
    _exchange(transfers, unfinished)
    if reason := on_each(run, True, partial(_check, group.share(entries), unfinished)):
        log.warning(f"{folder.name} did not arrive whole from the other nodes ({reason}): the mirror is read.")
        return None
    on_each(run, group.leads, partial(finish, folder, unfinished, entries, index))
    on_each(run, group.leads, partial(name_latest, folder))
    moved = sum(transfer.entry.bytes for transfer in transfers)
    log.info(
        f"{folder.name} was made whole from what the nodes hold: {moved / 1e9:.3g} GB went from node to node in "
        f"{time.monotonic() - began:.1f} s, and none came from {mirror.url}."
    )
    return found


def plan_transfers(
    entries: Sequence[Entry], told: Sequence[tuple[tuple[int, ...], list[str]]]
) -> tuple[list[Transfer], list[str]]:
    """Who sends which file to whom, in an order that all ranks keep, and the files that nobody holds.

    Args:
        told: for each rank, the ranks of its node and which files of its share it has found.
    """
    nodes: dict[tuple[int, ...], set[str]] = {}
    for ranks, files in told:
        nodes.setdefault(ranks, set()).update(files)
    transfers, lacking = [], []
    for number, entry in enumerate(entries):
        holders = [ranks for ranks, files in nodes.items() if entry.file in files]
        if not holders:
            lacking.append(entry.file)
            continue
        for place, ranks in enumerate(ranks for ranks, files in nodes.items() if entry.file not in files):
            holder = holders[place % len(holders)]
            transfers.append(Transfer(entry, holder[number % len(holder)], ranks[number % len(ranks)]))
    return transfers, lacking


def _common_index(run: Path, group: FolderGroup) -> tuple[str, bytes] | None:
    """Name and index.json of the latest checkpoint, if all nodes that have one have the same."""
    own = _latest_index(run) if group.leads else None
    told = dist.gather_objects((own[0], hashlib.sha256(own[1]).hexdigest()) if own else None)
    if len(set(filter(None, told))) != 1:
        return None
    common: tuple[str, bytes] = dist.broadcast_object(own, next(rank for rank, each in enumerate(told) if each))
    return common


def _latest_index(run: Path) -> tuple[str, bytes] | None:
    try:
        name = (run / CHECKPOINTS / LATEST).read_text(encoding="utf-8").strip()
        return (name, (run / CHECKPOINTS / name / INDEX).read_bytes()) if STEP.fullmatch(name) else None
    except (OSError, ValueError):
        return None


def _attempt(index: bytes) -> int:
    return int(json.loads(index)["written_by"]["attempt"])


def _is_current(mirror: Mirror, found: MirrorPath, newest: MirrorPath | None, index: bytes) -> bool:
    """Whether the mirror has nothing from a later attempt, or from a later step of the same attempt."""
    return newest is None or found > newest or (found == newest and mirror.read(newest.path(INDEX)) == index)


def _find_undamaged(entries: Sequence[Entry], folders: Sequence[Path]) -> dict[str, Path]:
    """The undamaged files, each with the folder in which it was found."""
    found: dict[str, Path] = {}
    for entry in entries:
        for folder in folders:
            try:
                if not entry.damage(folder):
                    found[entry.file] = folder
                    break
            except OSError:
                continue
    return found


def _copy_found(held: dict[str, Path], unfinished: Path) -> None:
    """Copy the files that this rank has found into the unfinished folder."""
    for file, place in held.items():
        (unfinished / file).parent.mkdir(exist_ok=True)
        if place != unfinished and (place / file).exists():  # it does not if its folder has become `unfinished`
            shutil.copyfile(place / file, unfinished / file)
            sync(unfinished / file)


def _exchange(transfers: Sequence[Transfer], unfinished: Path) -> None:
    """All ranks follow the same order, so that no two wait for each other."""
    for entry, sender, receiver in transfers:
        path = unfinished / entry.file
        if dist.rank() == sender:
            with open_to_read(path) or nullcontext() as file:
                send_file(file, entry.bytes, receiver)
        elif dist.rank() == receiver:
            path.parent.mkdir(exist_ok=True)
            receive_file(path, entry.bytes, sender)


def _check(entries: Sequence[Entry], unfinished: Path) -> str | None:
    for entry in entries:
        try:
            if reason := entry.damage(unfinished):
                return reason
        except OSError:
            return f"{entry.file} could not be written"
        sync(unfinished / entry.file)
    return None
