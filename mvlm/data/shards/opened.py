"""How many shards a process keeps mapped: many, since a global shuffle touches all of them, but not without bounds."""

from __future__ import annotations

import os
import resource
from collections import deque
from pathlib import Path
from threading import Lock
from typing import Any

FETCHED = 128
"""Shards of URLs: more than are shuffled together, and few enough to ask which of them the cache has removed."""

FILES = 1 << 16
"""Files that a process may have open, if the system lets it raise its limit so far."""

SHARE = 4
"""One part in so many of the files and of the maps that a process may have is for one mixture's shards."""

_FILES_A_SHARD = 2  # itself and its row index, each of which keeps a descriptor and a map


class OpenShards:
    """The mapped shards of some corpora. What was opened first is closed first.

    In a shuffle any shard may be the next, so that it matters little which one is closed, and this costs a read
    nothing. They are no more than the process may have files and maps, and together no larger than the machine's
    memory: beyond that the kernel has to read most pages anew, beside which opening a shard costs nothing, while its
    page tables for all that was ever touched would grow on, by a 500th of it.
    """

    def __init__(self) -> None:
        self.shards, self.bytes = most_shards(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._opened: deque[tuple[dict[Any, Any], Any, int]] = deque()
        self._together, self._lock = 0, Lock()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[()]]:
        return OpenShards, ()  # another process has its own

    def add(self, corpus: dict[Any, Any], number: Any, size: int, most: int) -> None:
        """Note that a shard of so many bytes was opened, and close those that are too many.

        Args:
            corpus: its open shards, by number.
            most: shards, if that is fewer than otherwise.
        """
        with self._lock:
            self._opened.append((corpus, number, size))
            self._together += size
            while len(self._opened) > 1 and (len(self._opened) > min(most, self.shards) or self._together > self.bytes):
                other, closed, freed = self._opened.popleft()
                other.pop(closed, None)
                self._together -= freed


def most_shards() -> int:
    """As many as may be open at a time; the soft limit on a process's files is raised towards the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = FILES if soft == resource.RLIM_INFINITY else soft
    try:
        maps = int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:  # no Linux
        maps = FILES
    return max(1, min(files, maps) // (SHARE * _FILES_A_SHARD))
