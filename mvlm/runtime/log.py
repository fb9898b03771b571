"""What commands say of themselves on standard error: "mvlm: " and a sentence.

`log` is heard from rank 0 alone, whichever rank calls it; `rank_log` is for what concerns the rank that says it, which
is named where it is not rank 0. Modules that may not import this one get the first by logging.getLogger("mvlm").
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from mvlm.runtime.launch import environment


class StandardError(logging.Handler):
    """Writes to what standard error is at the moment, so that a progress bar which takes its place is not torn."""

    def emit(self, record: logging.LogRecord) -> None:
        program, _, kind = record.name.partition(".")
        rank = environment()["rank"] if program == "mvlm" else 0  # others may be started from a rank, and are none
        if rank and kind != "rank":
            return
        with suppress(OSError, ValueError):  # a terminal that is gone ends no run
            print(f"{program}: {f'rank {rank}: ' if rank else ''}{record.getMessage()}", file=sys.stderr, flush=True)


def logger(program: str) -> logging.Logger:
    """Of a program, by whose name its sentences begin."""
    found = logging.getLogger(program)
    if not found.handlers:
        found.addHandler(StandardError())
    found.setLevel(logging.INFO)
    found.propagate = False  # to a root logger that a library or a notebook has set up, which would say it again
    return found


log = logger("mvlm")
rank_log = logging.getLogger("mvlm.rank")
