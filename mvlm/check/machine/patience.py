"""How long to wait for what hangs."""

from __future__ import annotations

import os


def patience(seconds: float) -> float:
    """Seconds to wait where a free core would not need so many: more of them, the more processes share the cores."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
