"""How long to wait for something that may hang."""

from __future__ import annotations

import os


def patience(seconds: float) -> float:
    """Scale a limit that would do on a free core by how many processes share the cores."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
