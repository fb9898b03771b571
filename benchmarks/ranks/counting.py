"""A store that counts its requests, and lines of results."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as torch_dist

from benchmarks.kept import add_record, code_version
from mvlm.runtime import rendezvous

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"


def keep(name: str, found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)
    add_record(RESULTS / name, found)


def about() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "commit": code_version(),
    }


class CountingStore(torch_dist.Store):
    """A store that counts its requests and the bytes that it gives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.inner, self.requests, self.given = torch_dist.TCPStore(*args, **kwargs), Counter[str](), 0
        self.given_of = Counter[str]()  # by the part of the key after `Rendezvous`'s own prefix

    def set(self, key: str, value: Any) -> None:
        self.requests["set"] += 1
        self.inner.set(key, value)

    def get(self, key: str) -> bytes:
        self.requests["get"] += 1
        value: bytes = self.inner.get(key)
        self.given += len(value)
        self.given_of[key.split("/")[2]] += len(value)
        return value

    def add(self, key: str, value: int) -> int:
        self.requests["add"] += 1
        return int(self.inner.add(key, value))

    def check(self, keys: list[str]) -> bool:
        self.requests["check"] += 1
        return bool(self.inner.check(keys))

    def wait(self, keys: list[str], *timeout: Any) -> None:
        self.requests["wait"] += 1
        self.inner.wait(keys, *timeout)

    def set_timeout(self, timeout: Any) -> None:
        self.inner.set_timeout(timeout)

    def clone(self) -> CountingStore:
        return self


def counted_stores() -> list[CountingStore]:
    """Count requests from now on; returns the stores that this process opens, in order."""
    stores: list[CountingStore] = []

    def counting(*args: Any, **kwargs: Any) -> CountingStore:
        stores.append(CountingStore(*args, **kwargs))
        return stores[-1]

    rendezvous.torch_dist = SimpleNamespace(**vars(torch_dist) | {"TCPStore": counting})  # type: ignore[assignment]
    return stores
