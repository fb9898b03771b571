"""Writes checkpoints while training continues. Their layout: mvlm/checkpoint/layout.py.

Each rank copies its own part of the fp32 tensors, and a thread writes that beside the final place. When all ranks'
files are written, hashed and synced, rank 0 renames the folder and only then points `latest` at it. A kill at any
moment leaves the previous checkpoint untouched.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mvlm.checkpoint.description import LEDGER
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.integrity import make_whole
from mvlm.checkpoint.layout import BEST, CHECKPOINTS, INDEX, LATEST, Entry, Writer, step_name
from mvlm.checkpoint.peers import PeerCopies
from mvlm.checkpoint.prune import delete_unfinished, make_way, prune
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.upload import Uploads
from mvlm.config.schema import Checkpoint
from mvlm.errors import cannot_write
from mvlm.runtime import dist
from mvlm.runtime.log import rank_log
from mvlm.runtime.storage import write_durably
from mvlm.training.checkpoint.share import Aside, ShareWriter, WriteFailure, make_folder
from mvlm.training.engine import Engine
from mvlm.training.ledger import write_ledger


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that has been started."""

    state: TrainState
    folder: Path
    partial: Path
    share: ShareWriter
    since: float


class Saver:
    """Starts checkpoints and publishes them; `start`, `publish` and `finish` are for all ranks at once.

    Args:
        attempt: at the run; what earlier ones have left half written is deleted.
        group: the ranks that see this run folder; None = all.
        uploads: gets what is published; None = there is no mirror.
        description: files by name that describe the weights, which every checkpoint includes.
        copies: get what is published, for the next node's memory; None = none are kept.
    """

    def __init__(
        self,
        engine: Engine,
        run: Path,
        config: Checkpoint,
        attempt: FencingToken,
        group: FolderGroup | None = None,
        uploads: Uploads | None = None,
        description: Mapping[str, bytes] | None = None,
        copies: PeerCopies | None = None,
    ) -> None:
        self.copies = copies
        self.seconds = 0.0  # from start to published, of the last checkpoint
        self.run, self.attempt = run, attempt
        self._engine, self._config, self._site = engine, config, group or FolderGroup.of_all()
        self.uploads = uploads or Uploads(None, run, config, attempt, self._site, print)
        self._description = description or {}
        self._home = run / CHECKPOINTS
        self._pending: _Pending | None = None
        self._aside = Aside()
        if self._site.leads:
            delete_unfinished(self._home, attempt.number)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what is pending: ranks that end on an error can no longer agree on it."""
        if self._pending:
            self._pending.share.join()
            if self._site.leads and not self.attempt.is_lost():
                shutil.rmtree(self._pending.partial, ignore_errors=True)
            self._pending = None

    @property
    def pending(self) -> bool:
        """Whether a checkpoint has been started and not published."""
        return self._pending is not None

    @property
    def written(self) -> bool:
        """Whether this rank's files of the pending checkpoint are written, or have failed."""
        return self._pending is not None and not self._pending.share.is_alive()

    def start(self, state: TrainState) -> None:
        """Copy this rank's share to the CPU and have it written in the background, after any checkpoint before it.

        What lies on a disk is not copied, but written before this returns.

        Raises:
            UserError: the checkpoint before it could not be written, or the run folder is gone.
        """
        self.finish()
        self.require_own_folder(state.step)
        since = time.monotonic()
        folder = self._home / step_name(state.step)
        partial = folder.with_name(f"{folder.name}.partial-{self.attempt.number}")
        unmade = make_folder(partial)
        share = ShareWriter(partial, self._aside.copy(self._engine), unmade)
        self._pending = _Pending(state, folder, partial, share, since)
        self._pending.share.start()
        while self._engine.disk and self._pending.share.is_alive():  # what is being written must not change
            self._pending.share.join(timeout=1)
            self._engine.disk.release()

    def finish(self) -> None:
        """Wait for the pending checkpoint and publish it, if there is one."""
        if self._pending:
            self.publish()

    def require_own_folder(self, step: int) -> None:
        """Raise `UserError`, with `step`, on every rank if any one's run folder is gone or a later attempt's."""
        lost, superseded = zip(*dist.gather_objects((self.attempt.is_lost(), self.attempt.superseded())), strict=True)
        if any(lost):
            raise self.attempt.lost()
        if any(superseded):
            raise self.attempt.overtaken(step)

    def settle_best(self, state: TrainState) -> TrainState:
        """Point `best` at the best checkpoint by the state that training begins with; all ranks must call.

        If a run folder lacks that checkpoint, the search for the best starts over.

        Raises:
            UserError: the folder cannot be written.
        """
        name = step_name(state.best.step) if state.best else ""
        is_here = not self._site.leads or (bool(name) and (self._home / name / INDEX).is_file())
        has_all = all(dist.gather_objects(is_here))
        if self._site.leads:
            try:
                if has_all:
                    write_durably(self._home / BEST, name)
                else:
                    (self._home / BEST).unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(str(self._home / BEST), error) from None
        if state.best and not has_all:
            rank_log.warning(f"The best checkpoint, {name}, is gone: the best from here on is kept.")
        return state if has_all else replace(state, best=None)

    def publish(self) -> None:
        """Make the pending checkpoint the run's latest, and delete those that are not to be kept.

        Raises:
            UserError: on every rank, if any could not write; what was latest stays so. StorageLost if more room would
                not help.
        """
        assert self._pending
        pending, self._pending = self._pending, None
        pending.share.join()
        self.require_own_folder(pending.state.step)
        copying = self.copies is not None and self.copies.busy
        gathered = dist.gather_objects((pending.share.entries, pending.share.failure, copying))
        failure = next((failure for _, failure, _ in gathered if failure), None)
        if self._site.leads:
            if not failure:
                entries = [entry for entries, _, _ in gathered for entry in entries]
                failure = _publish(pending, entries, self._description, self.attempt.writer)
            if failure:
                shutil.rmtree(pending.partial, ignore_errors=True)
        failure = next(filter(None, dist.gather_objects(failure)), None)
        if failure:
            self.require_own_folder(pending.state.step)  # it may have gone just now
            raise cannot_write(f"The checkpoint {pending.folder}", failure.error, where=f"rank {failure.rank}: ")
        if self._site.leads:
            _write_ledger(self.run, pending.state)
            prune(self.run, pending.folder, self._config, self.attempt.writer, self.uploads.held)
        if self.copies and not any(copying for _, _, copying in gathered):  # else the next checkpoint is copied
            self.copies.offer(pending.folder, [entries for entries, _, _ in gathered])
        self.uploads.offer(pending.folder, pending.state.is_best)
        self.seconds = time.monotonic() - pending.since


def _write_ledger(run: Path, state: TrainState) -> None:
    try:
        write_ledger(run, state)
    except OSError as error:
        raise cannot_write(str(run / LEDGER), error) from None


def _publish(
    pending: _Pending, entries: list[Entry], description: Mapping[str, bytes], writer: Writer
) -> WriteFailure | None:
    """Give a written checkpoint its name and point `latest` at it; returns what went wrong, if anything."""
    folder, partial = pending.folder, pending.partial
    try:
        make_whole(partial, entries, description, pending.state, writer)
        for entry in pending.share.entries:
            (partial / entry.file).stat()  # fails if a later attempt has deleted it as left over
        replaced = make_way(folder, writer)  # the same step from before resuming from an older checkpoint
        os.rename(partial, folder)
        write_durably(folder.parent / LATEST, folder.name)
        if pending.state.is_best:  # after a kill before this, `settle_best` makes up for it
            write_durably(folder.parent / BEST, folder.name)
        if replaced:
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        return WriteFailure(dist.rank(), error)
    return None
