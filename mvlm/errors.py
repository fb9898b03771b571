"""How commands end, and the exceptions that show users a sentence instead of a traceback."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """How every command and every rank ends; docs/exit_codes.md says what to do next."""

    DONE = 0
    MISTAKE = 1  # a user's, or bad data
    USAGE = 2  # argparse's own
    BUG = 70
    REQUEUE = 75  # everything is saved: start it again
    INTERRUPTED = 130  # Ctrl-C


OUT_OF_SIGHT = {
    errno.EIO,
    errno.EBADMSG,  # how ext4 reports that what it reads from a failing disk is not what it wrote
    errno.EUCLEAN,  # and XFS
    errno.ENODEV,
    errno.ENXIO,
    errno.EROFS,  # how a file system is remounted when its disk fails
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
"""Error numbers which mean that this node cannot reach the storage; freeing space would not help."""


class UserError(Exception):
    """A user's mistake or bad data.

    Its message is one sentence: what, where (file, row, rank) and what to do. The commands print it without a traceback
    and exit with `exit_code`. If several things are wrong at once, `sentences` has one for each, the message first.
    """

    exit_code: int = ExitCode.MISTAKE

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def sentences(self) -> tuple[str, ...]:
        return self.args


class Mistakes:
    """Mistakes gathered by a check that does not stop at the first one."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Swallow a `UserError` that ends the block, and keep its sentences."""
        try:
            yield
        except UserError as error:
            self.sentences += error.sentences

    def settle(self) -> None:
        """Raise a `UserError` if there are any."""
        if self.sentences:
            raise UserError(*self.sentences)


class StorageLost(UserError):
    """A node can no longer reach the run's storage: requeue the run, on other nodes if need be."""

    exit_code = ExitCode.REQUEUE


class MemoryCorrupted(UserError):
    """A rank's memory returned other bits than were written: requeue the run, on other nodes if need be."""

    exit_code = ExitCode.REQUEUE


class DataLost(UserError):
    """A rank gets no more data, for a reason that a restart may well not meet: a store or a disk of shards cannot be
    reached, or a loader process was killed. The run's progress can still be saved."""

    exit_code = ExitCode.REQUEUE


class HeldOutLost(UserError):
    """Some rank cannot read an evaluation's data, or they do not fit in memory: raised on all ranks, when none waits.

    The run's progress can still be saved. The exit code is that of the cause.
    """

    @classmethod
    def of(cls, cause: UserError) -> HeldOutLost:
        """The error for a cause. No constructor: unpickling, as when ranks send it, calls the class with sentences."""
        lost = cls(*cause.args)
        lost.exit_code = cause.exit_code
        return lost


def first_line(error: BaseException | str) -> str:
    """The first line of an error's text, without its full stop; its class name if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")


def not_utf8(error: UnicodeEncodeError) -> UserError:
    """The error for a path that is not UTF-8, as most libraries need it, or that this environment cannot express.

    Raises:
        UnicodeEncodeError: neither is the case, so that it is a bug.
    """
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        return UserError(
            f"This environment's encoding, {encoding}, lacks characters that are needed: set PYTHONUTF8=1."
        )
    if any("\ud800" <= character <= "\udfff" for character in error.object):
        return UserError(f"{error.object!r} is not UTF-8: rename that file or folder, or give another.")
    raise error


def no_shards(place: object) -> UserError:
    """The error for a folder of shards that does not exist."""
    why = "it is a file" if os.path.isfile(str(place)) else "the folder does not exist"
    return UserError(f"No shards at {place}: {why}; make a folder of shards with `mvlm-data shard`.")


FREE_ROOM = "free some room and start again"


def cannot_write(what: str, error: OSError, remedy: str = FREE_ROOM, where: str = "") -> UserError:
    """The error for a run in progress that cannot write.

    Args:
        what: the file or folder, with which the sentence begins.
        remedy: what to do, unless the storage itself is lost.
        where: who met the error, if it was not this rank.
    """
    reason = f"{where}{error}"
    if error.errno in OUT_OF_SIGHT:
        host = "" if where else f" from {socket.gethostname()}"
        return StorageLost(f"{what} cannot be reached{host} ({reason}): start the same command again where it can be.")
    return UserError(f"{what} could not be written ({reason}): {remedy}.")


def cannot_read(what: object, error: OSError | ValueError, remedy: str) -> UserError:
    """The error for shards that cannot be read; `remedy` says what to do, unless their storage itself is lost."""
    if isinstance(error, OSError) and error.errno in OUT_OF_SIGHT:
        host = socket.gethostname()
        return DataLost(f"{what} cannot be reached from {host} ({error}): start the same command again where it can.")
    return UserError(f"{what} cannot be read ({error}): {remedy}.")
