"""How a command ends, and the exceptions that mean: no bug, and the user need not read a traceback."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """How every command and every rank ends; docs/exit_codes.md says what to do then."""

    DONE = 0
    MISTAKE = 1  # a user's, or bad data
    USAGE = 2  # argparse's own
    BUG = 70
    REQUEUE = 75  # everything is saved: start it again
    INTERRUPTED = 130  # Ctrl-C


OUT_OF_SIGHT = {
    errno.EIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.EROFS,  # what a file system turns to when its disk fails
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
}
"""Numbers of an OSError that say: the storage is not to be reached from this node, which more room would not mend."""


class UserError(Exception):
    """A user's mistake or bad data.

    Its message is one sentence: what, where (file, row, rank) and what to do. The commands print it
    without a traceback and exit with `exit_code`. Where several things were found wrong at once it has a sentence for
    each; the first is its message.
    """

    exit_code: int = ExitCode.MISTAKE

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def sentences(self) -> tuple[str, ...]:
        return self.args


class Mistakes:
    """What is wrong, gathered by a check that continues instead of ending at the first."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the sentences of a `UserError` that ends the block."""
        try:
            yield
        except UserError as error:
            self.sentences += error.sentences

    def settle(self) -> None:
        """Raises UserError where there is any."""
        if self.sentences:
            raise UserError(*self.sentences)


class StorageLost(UserError):
    """A node has lost sight of the run's storage in the middle: the run is to be requeued, elsewhere if need be."""

    exit_code = ExitCode.REQUEUE


class MemoryCorrupted(UserError):
    """A rank's memory hands back other bits than were written: the run is to be requeued, elsewhere if need be."""

    exit_code = ExitCode.REQUEUE


class DataLost(UserError):
    """A rank gets no more data, for a reason that another start may well not meet: a store or a disk of shards that is
    gone, or a loader process that was killed. What the run has done can still be saved."""

    exit_code = ExitCode.REQUEUE


class HeldOutLost(UserError):
    """An evaluation's data cannot be read by some rank, or do not fit: raised on every rank alike, when none waits.

    What the run has done can still be saved. It ends with the code of the cause.
    """

    @classmethod
    def of(cls, cause: UserError) -> HeldOutLost:
        """No constructor of its own: exceptions that ranks send each other are made anew of their sentences."""
        lost = cls(*cause.args)
        lost.exit_code = cause.exit_code
        return lost


def first_line(error: BaseException | str) -> str:
    """Of an error's text without its stop, or its kind where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")


def no_shards(place: object) -> UserError:
    """What to raise where a folder of shards is not there."""
    why = "it is a file" if os.path.isfile(str(place)) else "the folder does not exist"
    return UserError(f"No shards at {place}: {why}; make a folder of shards with `mvlm-data shard`.")


def cannot_write(what: str, error: OSError, so: str, where: str = "") -> UserError:
    """What to raise when a run that is under way cannot write.

    Args:
        what: the file or folder, with which the sentence begins.
        so: what to do where it is not the storage that is lost.
        where: who has met it, when it was not this rank.
    """
    reason = f"{where}{error}"
    if error.errno in OUT_OF_SIGHT:
        host = "" if where else f" from {socket.gethostname()}"
        return StorageLost(f"{what} cannot be reached{host} ({reason}): start the same command again where it can be.")
    return UserError(f"{what} could not be written ({reason}): {so}.")


def cannot_read(what: object, error: OSError | ValueError, so: str) -> UserError:
    """What to raise when shards cannot be read; `so` says what to do where it is not their storage that is lost."""
    if isinstance(error, OSError) and error.errno in OUT_OF_SIGHT:
        host = socket.gethostname()
        return DataLost(f"{what} cannot be reached from {host} ({error}): start the same command again where it can.")
    return UserError(f"{what} cannot be read ({error}): {so}.")
