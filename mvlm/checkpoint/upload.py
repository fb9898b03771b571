"""Carries checkpoints from the run folder to the mirror while training continues.

A thread of each rank uploads files that its node wrote. When all ranks report between two steps that theirs have
arrived, a thread of rank 0 completes the checkpoint. There is one upload at a time. Of the checkpoints published
meanwhile, the best goes next and then the newest. All ranks take the same decisions at the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from mvlm.checkpoint.description import CONFIG, DEEPSPEED, RECORDS, RUN_JSON
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.fetch import fetch_newest
from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.layout import ATTEMPTS, BEST, CHECKPOINTS, INDEX, LATEST, STATE, read_index, step_of
from mvlm.checkpoint.mirror import Mirror, MirrorPath
from mvlm.checkpoint.prune import prune
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.runtime import dist

BESIDE = (CONFIG, DEEPSPEED, RUN_JSON, *RECORDS)
"""Files of the run folder that people look for beside the checkpoints, or that later attempts need."""
LOOK_S = 0.2


class Uploads:
    """Does nothing if there is no mirror.

    Args:
        say: tells the person at the terminal.
        memory: where nodes keep copies of each other's files, if they do.

    Attributes:
        seconds: how long the last upload took.
    """

    def __init__(
        self,
        mirror: Mirror | None,
        run: Path,
        config: Checkpoint,
        attempt: FencingToken,
        group: FolderGroup,
        say: Callable[[str], None],
        memory: Path | None = None,
    ) -> None:
        self.seconds = 0.0
        self._memory = memory
        self._mirror, self._run, self._config, self._attempt, self._group = mirror, run, config, attempt, group
        self._say = say
        self._next: Path | None = None
        self._newest: Path | None = None
        self._best: Path | None = None
        self._best_waits = False
        self._task: _Task | None = None
        self._folder: Path | None = None
        self._completing = False
        self._failure: str | None = None
        self._since = 0.0

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being uploaded."""
        return self._task is not None

    @property
    def ready(self) -> bool:
        """Whether this rank's part of the upload is done, or has failed."""
        return self._task is not None and not self._task.is_alive()

    @property
    def held(self) -> Path | None:
        """The checkpoint being uploaded, which must not be deleted."""
        return self._folder

    def offer(self, checkpoint: Path, best: bool = False) -> None:
        """Upload a published checkpoint of the run folder, now or next; all ranks must call.

        Args:
            best: it is the run's best so far.
        """
        if self._mirror:
            self._newest = checkpoint
            if best:
                self._next, self._best, self._best_waits = None, checkpoint, True
            else:
                self._next = checkpoint
            if not self.pending:
                self._begin()

    def offer_start(self, checkpoint: Path, best: Path | None) -> None:
        """Upload what an earlier attempt could not; all ranks must call.

        Args:
            checkpoint: the one that this attempt begins with, which should be the mirror's newest.
            best: the run's best, which should be the mirror's.
        """
        mirror = self._mirror
        if not mirror:
            return
        has_newest, has_best = dist.as_rank_0(lambda: _has(mirror, checkpoint, best))
        if best and not has_best:
            self.offer(best, best=True)
            has_newest = best == checkpoint  # another must follow, since what this attempt uploads counts as newer
        if not has_newest:
            self.offer(checkpoint)

    def advance(self) -> None:
        """Continue with what comes next; all ranks must call, when all are ready."""
        assert self._task
        self._task.join()
        self._failure = next(filter(None, dist.gather_objects(self._task.failure)), None)
        if not self._failure and not self._completing:
            self._completing = True
            self._task = _Task(self._complete if dist.rank() == 0 else None)
            return
        self._task, folder, self._folder = None, self._folder, None
        self.seconds = time.monotonic() - self._since
        if self._failure and folder:
            self._say(f"{folder.name} is not in the mirror, and training continues: {self._failure}")
        if self._next or self._best_waits:
            self._begin()
        if self._newest and self._group.leads:
            prune(self._run, self._newest, self._config, self._attempt.writer, self.held)

    def drain(self) -> None:
        """Wait for all uploads, successful or not; all ranks must call."""
        while self.pending:  # in short exchanges, since a long one would reach its time limit in a slow upload
            if dist.all_agree(self.ready):
                self.advance()
            else:
                time.sleep(LOOK_S)

    def finish(self) -> None:
        """At the end of the run, wait for all uploads.

        Raises:
            UserError: the last checkpoint is not in the mirror; on all ranks.
        """
        self.drain()
        if self._failure:
            assert self._mirror and self._newest
            raise UserError(
                f"The run is done, but {self._mirror.url} lacks {self._newest.name} ({self._failure.rstrip('.')}); "
                "the same command again uploads it."
            )

    def complete_folder(self) -> None:
        """Make the run folder's newest checkpoint one that all ranks can read; all ranks must call.

        Raises:
            UserError: nodes have folders of their own, and the mirror has no checkpoint.
        """
        self.drain()
        if not self._mirror or self._group.is_whole:
            return
        if not fetch_newest(self._mirror, self._run, self._group, self._memory):
            raise UserError(
                f"{self._mirror.url} has no checkpoint to go back to ({self._failure}): start the same command again "
                "once it can be written."
            )

    def _begin(self) -> None:
        if self._best_waits:
            self._folder, self._best_waits = self._best, False
        else:
            self._folder, self._next = self._next, None
        self._completing = False
        self._since = time.monotonic()
        self._task = _Task(self._upload_share)

    def _remote(self, folder: Path) -> MirrorPath:
        return MirrorPath(self._attempt.number, step_of(folder))

    def _upload_share(self) -> None:
        assert self._mirror and self._folder
        folder, remote = self._folder, self._remote(self._folder)
        if dist.rank() == 0:  # what failed uploads have left takes room that this one may need
            self._stop_if_superseded()
            self._mirror.prune(remote, self._config, self._attempt.is_of_chain)
        here = sorted(entry.file for entry in read_index(folder) if (folder / entry.file).exists())
        for file in self._group.share([file for file in here if file != STATE]):
            self._mirror.upload(folder / file, remote.path(file))

    def _complete(self) -> None:
        """Upload what makes the checkpoint whole, in an order that never makes a partial one look whole."""
        assert self._mirror and self._folder
        mirror, folder, remote = self._mirror, self._folder, self._remote(self._folder)
        self._stop_if_superseded()
        self._upload_small_files(mirror)
        mirror.upload(folder / STATE, remote.path(STATE))
        arrived = mirror.sizes(remote.path())
        for entry in read_index(folder):
            if arrived.get(remote.path(entry.file)) != entry.bytes:
                raise UserError(f"{mirror.url}/{remote.path(entry.file)} did not arrive in full.")
        self._stop_if_superseded()
        mirror.upload(folder / INDEX, remote.path(INDEX))
        mirror.write(f"{CHECKPOINTS}/{LATEST}", Path(remote.path()).name.encode())
        if folder == self._best:
            mirror.write(f"{CHECKPOINTS}/{BEST}", Path(remote.path()).name.encode())
        mirror.prune(remote, self._config, self._attempt.is_of_chain)

    def _stop_if_superseded(self) -> None:
        if self._attempt.superseded_in_mirror():
            raise UserError(f"a later attempt than {self._attempt.number} has begun.")

    def _upload_small_files(self, mirror: Mirror) -> None:
        settings = [f"{ATTEMPTS}/{self._attempt.number:04d}/{name}" for name in (CONFIG, DEEPSPEED)]
        for name in (*BESIDE, *settings):
            if (self._run / name).exists():
                mirror.upload(self._run / name, name)


class _Task(Thread):
    """Runs an action in the background, from now on."""

    def __init__(self, action: Callable[[], None] | None) -> None:
        super().__init__(name="mirror", daemon=True)
        self._action = action
        self.failure: str | None = f"rank {dist.rank()}: a bug, whose traceback is above"
        self.start()

    def run(self) -> None:
        try:
            if self._action:
                self._action()
            self.failure = None
        except (OSError, UserError) as error:
            self.failure = f"rank {dist.rank()}: {error}"


def _has(mirror: Mirror, checkpoint: Path, best: Path | None) -> tuple[bool, bool]:
    """Whether the mirror's newest checkpoint is `checkpoint`, and its best is `best`."""

    def is_copy(remote: MirrorPath | None, local: Path | None) -> bool:
        if remote is None or local is None or remote.step != step_of(local):
            return False
        return mirror.read(remote.path(INDEX)) == (local / INDEX).read_bytes()

    history, name = mirror.history(), mirror.best()
    named = next((remote for remote in history if Path(remote.path()).name == name), None)
    return is_copy(next(iter(history), None), checkpoint), is_copy(named, best)
