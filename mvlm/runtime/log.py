"""What commands say of themselves on standard error: "mvlm: " and a sentence.

`log` is heard from rank 0 alone, whichever rank calls it; `rank_log` is for what concerns the rank that says it, which
is named where it is not rank 0. Modules that may not import this one get the first by logging.getLogger("mvlm").
"""

from __future__ import annotations

import logging
import sys

from mvlm.runtime.launch import environment

log = logging.getLogger("mvlm")
rank_log = logging.getLogger("mvlm.rank")


class StandardError(logging.Handler):
    """Writes to what standard error is at the moment, so that a progress bar which takes its place is not torn."""

    def emit(self, record: logging.LogRecord) -> None:
        rank = environment()["rank"]
        if rank and record.name != rank_log.name:
            return
        print(f"mvlm: {f'rank {rank}: ' if rank else ''}{record.getMessage()}", file=sys.stderr, flush=True)


log.addHandler(StandardError())
log.setLevel(logging.INFO)
log.propagate = False  # to a root logger that a library or a notebook has set up, which would say it again
