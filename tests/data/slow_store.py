"""A file system for fsspec that takes its time and fails, as object stores do; registered as slow://."""

import threading
import time
from typing import ClassVar

from fsspec.implementations.local import LocalFileSystem


class SlowStore(LocalFileSystem):
    """Paths are local ones. The class holds what the tests set and see, since fsspec makes the instances."""

    protocol = "slow"
    latency = 0.0
    failures: ClassVar[dict] = {}  # file name -> how often it fails from now on
    spoilt: ClassVar[dict] = {}  # file name -> how often it arrives damaged
    fetched: ClassVar[list] = []
    now, most = 0, 0
    lock = threading.Lock()

    @classmethod
    def reset(cls, latency=0.0):
        cls.latency, cls.failures, cls.spoilt, cls.fetched, cls.now, cls.most = latency, {}, {}, [], 0, 0

    @classmethod
    def _take(cls, counts, name):
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
            type(self).now += 1
            type(self).most = max(self.most, self.now)
        try:
            time.sleep(self.latency)
            if self._take(self.failures, name):
                raise ConnectionError("the store does not answer")
            with open(rpath, "rb") as source, open(lpath, "wb") as file:
                content = source.read()
                file.write(content[:-1] if self._take(self.spoilt, name) else content)
            self.fetched.append(name)
        finally:
            with self.lock:
                type(self).now -= 1
