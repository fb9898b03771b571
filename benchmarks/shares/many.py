"""Checkpoints at size: python benchmarks/shares/many.py

How long saving blocks training: a rank with a share of so many MB begins a checkpoint through the run's own saver,
which copies the share and returns, and a thread writes it.

A checkpoint of a thousand shares: a small model's weights, concatenated and cut as so many ranks would save them.
Ranks, forks of this process, verify it together as a run does; another fork merges it into Hugging Face safetensors,
reports how far its memory rose, and compares every tensor. Writes results/many.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[2])

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.kept import add_record, code_version  # noqa: E402
from benchmarks.shares.__main__ import bytes_read, on_ranks  # noqa: E402
from benchmarks.shares.build import memory  # noqa: E402
from mvlm.checkpoint.cut import TensorPart  # noqa: E402
from mvlm.checkpoint.fencing import FencingToken  # noqa: E402
from mvlm.checkpoint.integrity import find_damage  # noqa: E402
from mvlm.checkpoint.layout import INDEX, STATE, Entry  # noqa: E402
from mvlm.checkpoint.state import TrainState  # noqa: E402
from mvlm.checkpoint.tensors import write_tensors  # noqa: E402
from mvlm.config.schema import Checkpoint  # noqa: E402
from mvlm.export.folder import PREFIX, write_weights  # noqa: E402
from mvlm.runtime import dist  # noqa: E402
from mvlm.training.checkpoint.save import Saver  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "many.jsonl"
WIDTH, LAYERS, WORDS = 512, 20, 16_000
FILE_BYTES = 50_000_000
"""The most in a merged file."""


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--mb", type=int, nargs="*", default=[250, 500, 1000], help="sizes of a rank's share")
    words.add_argument("--shares", type=int, default=1000)
    words.add_argument("--ranks", type=int, nargs="*", default=[1, 4], help="ranks that verify together")
    words.add_argument("--folder", help="where to write (default: TMPDIR)")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for size in asked.mb:
            keep({"kind": "save"} | on_ranks(1, partial(time_saves, Path(folder) / f"run-{size}", size))[0])
        if not asked.shares:
            return 0
        checkpoint = Path(folder) / "checkpoint"
        keep({"kind": "write"} | on_ranks(1, partial(write, checkpoint, asked.shares))[0])
        for ranks in asked.ranks:
            found = on_ranks(ranks, partial(verify, checkpoint))
            slowest = {name: max(each[name] for each in found) for name in found[0]}
            keep({"kind": "verify", "shares": asked.shares, "ranks": ranks} | slowest)
        merged = on_ranks(1, partial(merge, checkpoint, Path(folder) / "merged"))[0]
        keep({"kind": "merge", "shares": asked.shares} | merged)
    return 0


def keep(found: dict[str, Any]) -> None:
    line = found | {"load": round(os.getloadavg()[0], 1), "commit": code_version()}
    print(json.dumps(line), flush=True)
    add_record(RESULTS, line)


class Timer:
    """Wall-clock seconds and this thread's CPU seconds since it was created."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def spent(self, name: str) -> dict[str, float]:
        return {f"{name}, s": time.perf_counter() - self._wall, f"{name}, CPU s": time.thread_time() - self._cpu}


class Share:
    """Stands in for an engine: a share of weights and two moments, in parts of 16 MB."""

    disk = None

    def __init__(self, size: int) -> None:
        self._tensors = [torch.rand(4_000_000) for _ in range(math.ceil(size / 16))]

    @property
    def bytes(self) -> int:
        return sum(4 * tensor.numel() for tensor in self._tensors)

    def own_parts(self) -> Iterator[tuple[str, dict[str, TensorPart]]]:
        for number, tensor in enumerate(self._tensors):
            key = ("weight", "exp_avg", "exp_avg_sq")[number % 3]
            yield f"layer.{number // 3}", {key: TensorPart(tensor, 0, tuple(tensor.shape))}


def time_saves(run: Path, size: int) -> dict[str, Any]:
    """How long the first save and a later one block the main thread, and how far memory rises."""
    engine: Any = Share(size)
    saver = Saver(engine, run, Checkpoint(keep=1), FencingToken(run))
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    timer = Timer()
    saver.start(TrainState(1, 16, 0, "shards", updates=1))
    found = timer.spent("first blocked")
    saver.finish()
    timer = Timer()
    saver.start(TrainState(2, 32, 0, "shards", updates=2))
    found |= timer.spent("blocked")
    saver.finish()
    rise = memory("VmHWM") - before
    return {"bytes": engine.bytes, **found, "saved, s": saver.seconds, "memory rose by": rise}


def shapes() -> dict[str, tuple[int, ...]]:
    layers = {f"layer.{number}.{side}": (WIDTH, 4 * WIDTH) for number in range(LAYERS) for side in ("in", "out")}
    return {"words": (WORDS, WIDTH), **layers, "temperature": ()}


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(hash_of(name)))


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(name[-8:]))


def write(checkpoint: Path, shares: int) -> dict[str, Any]:
    """Write the shares, with only one of them in memory besides the tensor that it is cut from."""
    checkpoint.mkdir()
    total = sum(math.prod(shape) for shape in shapes().values())
    edges = [total * number // shares for number in range(shares + 1)]
    entries, begin, number = [], 0, 0
    parts: dict[str, TensorPart] = {}
    for name, shape in shapes().items():
        flat = tensor(name, shape).flatten()
        for low, high in list(pairwise(edges))[number:]:
            start, stop = max(low - begin, 0), min(high - begin, len(flat))
            if start >= len(flat):
                break
            if start < stop:
                parts[name] = TensorPart(flat[start:stop].clone(), start, shape)
            if high <= begin + len(flat):
                path = checkpoint / f"weights-{number:05d}-of-{shares:05d}.safetensors"
                entries.append(write_tensors(path, parts))
                number, parts = number + 1, {}
        begin += len(flat)
    state = json.dumps(TrainState(0, 0, 0, "shards").to_json())
    (checkpoint / STATE).write_text(state)
    entries.append(Entry(STATE, len(state), sha256(checkpoint / STATE)))
    index = json.dumps({"format": 3, "files": [asdict(entry) for entry in entries]})
    (checkpoint / INDEX).write_text(index)
    return {"shares": number, "bytes": 4 * total, "index, bytes": len(index)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(checkpoint: Path) -> dict[str, Any]:
    """Verify this rank's part of it, as each rank does before a run is resumed.

    Raises:
        RuntimeError: it is reported as damaged, or is not although a bit of one share is flipped.
    """
    dist.barrier()
    before, timer = bytes_read(), Timer()
    if reason := find_damage(checkpoint):
        raise RuntimeError(reason)
    found = timer.spent("verified") | {"read": bytes_read() - before}
    share = sorted(checkpoint.glob("weights-*"))[-3]
    flip(share)
    if not (reason := find_damage(checkpoint)) or share.name not in reason:
        raise RuntimeError(f"{share.name} is damaged, but {reason} was reported.")
    flip(share)
    return found


def flip(path: Path) -> None:
    """Flip the last byte's lowest bit on one rank, while the others wait."""
    dist.barrier()
    if dist.rank() == 0:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    dist.barrier()


def merge(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Merge it as `mvlm export` does.

    Raises:
        RuntimeError: a tensor is not what it was.
    """
    out.mkdir()
    Path("/proc/self/clear_refs").write_text("5")
    before, timer = memory("VmRSS"), Timer()
    write_weights(checkpoint, out, FILE_BYTES)
    found = timer.spent("merged") | {"memory rose by": memory("VmHWM") - before}
    files = sorted(out.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as file:
            for title in file.keys():  # noqa: SIM118
                name = title.removeprefix(PREFIX)
                if not torch.equal(file.get_tensor(title), tensor(name, shapes()[name])):
                    raise RuntimeError(f"{name} is not what it was.")
    largest = 4 * max(math.prod(shape) for shape in shapes().values())
    return found | {"files": len(files), "largest tensor": largest, "bytes": sum(path.stat().st_size for path in files)}


if __name__ == "__main__":
    sys.exit(main())
