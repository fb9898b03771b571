"""The log of commands on standard error: "mvlm: " and a sentence.

`log` is heard from rank 0 alone, whichever rank calls it; `rank_log` is for what concerns the calling rank, which is
named unless it is rank 0. Modules that may not import this one get the first by logging.getLogger("mvlm").
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from mvlm.runtime.launch import environment


class StandardError(logging.Handler):
    """Writes to whatever sys.stderr is at the moment, so that a progress bar which has replaced it is not torn."""

    def emit(self, record: logging.LogRecord) -> None:
        program, _, kind = record.name.partition(".")
        rank = environment()["rank"] if program == "mvlm" else 0  # others are no ranks, even if a rank started them
        if rank and kind != "rank":
            return
        with suppress(OSError, ValueError):  # a terminal that is gone must not end a run
            print(f"{program}: {f'rank {rank}: ' if rank else ''}{record.getMessage()}", file=sys.stderr, flush=True)


def logger(program: str) -> logging.Logger:
    """The logger of a program, whose name begins its sentences."""
    found = logging.getLogger(program)
    if not found.handlers:
        found.addHandler(StandardError())
    found.setLevel(logging.INFO)
    found.propagate = False  # a root logger that a library or a notebook has set up would repeat it
    return found


log = logger("mvlm")
rank_log = logging.getLogger("mvlm.rank")
