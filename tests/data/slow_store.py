"""A file system for fsspec that is slow and sometimes fails, as object stores do, for URLs that begin with slow://."""

import threading
import time
from typing import ClassVar

from fsspec.implementations.local import LocalFileSystem


class SlowStore(LocalFileSystem):
    """Paths are local. Tests set and read attributes of the class, since fsspec makes the instances."""

    protocol = "slow"
    latency = 0.0
    failures: ClassVar[dict] = {}  # by file name: how many fetches will fail
    spoilt: ClassVar[dict] = {}  # by file name: how many fetches will arrive damaged
    fetched: ClassVar[list] = []
    at_once, most_at_once = 0, 0
    lock = threading.Lock()

    @classmethod
    def reset(cls, latency=0.0):
        cls.latency = latency
        cls.failures, cls.spoilt, cls.fetched = {}, {}, []
        cls.at_once, cls.most_at_once = 0, 0

    @classmethod
    def _is_due(cls, counts, name):
        """Whether a file still has such a fault, which is then counted."""
        with cls.lock:
            left = counts.get(name, 0)
            counts[name] = left - 1
            return left > 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("slow://"))

    def get_file(self, rpath, lpath, **options):
        name = str(rpath).rpartition("/")[2]
        with self.lock:
            type(self).at_once += 1
            type(self).most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.latency)
            if self._is_due(self.failures, name):
                raise ConnectionError("the store does not answer")
            with open(rpath, "rb") as source, open(lpath, "wb") as file:
                content = source.read()
                file.write(content[:-1] if self._is_due(self.spoilt, name) else content)
            self.fetched.append(name)
        finally:
            with self.lock:
                type(self).at_once -= 1
