"""How many shards a process keeps mapped: many, since a global shuffle touches all of them, but not unlimited."""

from __future__ import annotations

import os
import resource
from collections import deque
from pathlib import Path
from threading import Lock
from typing import Any

FETCHED = 128
"""Limit for a URL's shards: more than are shuffled together, and few enough to check which the cache has removed."""

FILES = 1 << 16
"""Files that a process may have open, if the system lets it raise its limit that far."""

SHARE = 4
"""One mixture's shards get one part in this many of the files and maps that a process may have."""

_FILES_PER_SHARD = 2  # itself and its row index, each of which keeps a descriptor and a map


class OpenShards:
    """The mapped shards of some corpora; those opened first are closed first.

    In a shuffle any shard may be next, so it hardly matters which one is closed, and this order costs reads nothing.
    The process's limits on files and maps bound their number, and the machine's memory bounds their total size: beyond
    that the kernel has to reread most pages, compared with which opening a shard costs nothing, while page tables for
    everything ever touched would keep growing, by a 500th of it.
    """

    def __init__(self) -> None:
        self.shards, self.bytes = most_shards(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._opened: deque[tuple[dict[Any, Any], Any, int]] = deque()
        self._together, self._lock = 0, Lock()

    def __reduce__(self) -> tuple[type[OpenShards], tuple[()]]:
        return OpenShards, ()  # another process has its own

    def add(self, corpus: dict[Any, Any], number: Any, size: int, most: int) -> None:
        """Note that a shard of `size` bytes was opened, and close those in excess.

        Args:
            corpus: its open shards, by number.
            most: limit on the number of shards, if lower than `self.shards`.
        """
        with self._lock:
            self._opened.append((corpus, number, size))
            self._together += size
            while len(self._opened) > 1 and (len(self._opened) > min(most, self.shards) or self._together > self.bytes):
                other, closed, freed = self._opened.popleft()
                other.pop(closed, None)
                self._together -= freed


def most_shards() -> int:
    """How many shards may be open at a time; raises the soft limit on the process's files towards the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = FILES if soft == resource.RLIM_INFINITY else soft
    try:
        maps = int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:  # not Linux
        maps = FILES
    return max(1, min(files, maps) // (SHARE * _FILES_PER_SHARD))
