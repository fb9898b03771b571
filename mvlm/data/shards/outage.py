"""A store of shards that does not answer: tried again, waited for, and given up with a sentence."""

from __future__ import annotations

import errno
import time
from types import TracebackType

from mvlm.errors import DataLost, UserError
from mvlm.runtime.log import rank_log

PAUSES_S = (0.5, 2.0, 8.0)  # before something is fetched again, by which most of what passes has passed
RETRY_S = 5.0  # between attempts at a store that is gone
LOOK_S = 0.05  # between looks whether anybody still needs it
FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(UserError, ImportError, ValueError, TypeError),
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of this node's disk
TRY_AGAIN = (408, 425, 429)


class Outages:
    """What cannot be fetched for now, as the threads of a process have found.

    Args:
        patience: minutes that a store which is gone is waited for.

    Attributes:
        reasons: by name, how fetching it has failed last.
        given_up: nobody needs any of it any more.
    """

    def __init__(self, patience: float = 0.0):
        self.patience = patience
        self.reasons: dict[str, str] = {}
        self.given_up = False


class Attempts:
    """At fetching one thing, until it is there; to be left as a context manager, however that ends."""

    def __init__(self, name: str, outages: Outages):
        self._name, self._outages = name, outages
        self._began, self._made = time.monotonic(), 0

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._outages.reasons.pop(self._name, None)

    def failed(self, error: Exception) -> None:
        """Wait until another attempt is worth making.

        Raises:
            UserError: it would fail again.
            DataLost: the store has been gone for too long.
        """
        self._made += 1
        if self._made <= len(PAUSES_S):
            self._wait(PAUSES_S[self._made - 1])
            return
        failed = f"{self._name} cannot be had, after {self._made} attempts ({describe(error)})"
        if not may_pass(error):
            raise UserError(f"{failed}: is it still there?") from None
        if self._outages.patience and not self._outages.reasons:
            rank_log.warning(
                f"{self._name} cannot be had for now ({describe(error)}): waiting up to "
                f"{self._outages.patience:g} minutes, data.patience, for its store."
            )
        self._outages.reasons[self._name] = describe(error)
        left_s = self._began + 60 * self._outages.patience - time.monotonic()
        if left_s <= 0 or self._outages.given_up:
            waited = f" in {self._outages.patience:g} minutes, data.patience" if self._outages.patience else ""
            raise DataLost(f"{failed}{waited}: start the same command again when its store is back.") from None
        self._wait(min(left_s, RETRY_S))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._outages.given_up:
            time.sleep(min(left, LOOK_S))


def may_pass(error: Exception) -> bool:
    """Whether what a store or the way to it has raised may be another thing a while later."""
    if isinstance(error, FINAL) or "Credential" in type(error).__name__:
        return False
    if isinstance(error, OSError) and error.errno in FULL:
        return False
    status = getattr(error, "status", None)  # of aiohttp
    return not (isinstance(status, int) and 400 <= status < 500 and status not in TRY_AGAIN)


def describe(error: Exception) -> str:
    """In one line; an error of ours is a sentence already."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".partition("\n")[0]
