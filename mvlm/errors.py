"""The exceptions that mean: no bug, and the user need not read a traceback."""

from __future__ import annotations

import errno
import socket

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
    without a traceback and exit with code 1.
    """

    exit_code = 1


class StorageLost(UserError):
    """A node has lost sight of the run's storage in the middle: the run is to be requeued, elsewhere if need be."""

    exit_code = 75


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
        return StorageLost(
            f"{what} is out of sight{host} ({reason}): start the same command again where that storage is seen."
        )
    return UserError(f"{what} could not be written ({reason}): {so}.")
