"""Standard output that nobody reads any more, as behind `| head`."""

from __future__ import annotations

import os
import select

STDOUT = 1
CLOSED = "Standard output was closed before all was said."


def nobody_reads(error: Exception) -> bool:
    """Whether that is what this error says; what is still to be printed is then let go."""
    output = select.poll()
    output.register(STDOUT, 0)
    if not isinstance(error, BrokenPipeError) or not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True
