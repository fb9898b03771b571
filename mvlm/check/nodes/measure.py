"""Measures the speed of this rank's device, and of exchanges among the ranks of the group."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from mvlm.runtime import dist

MATMUL_SECONDS = 0.5
FIRST_BYTES, LAST_BYTES = 1 << 18, 1 << 28
ENOUGH_SECONDS = 0.02  # of one all-reduce, beyond which its latency hardly counts
REPEAT_SECONDS = 0.5
LEAST_REPEATS, MOST_REPEATS = 2, 20


def matmul_flops() -> float:
    """Floating point operations a second of this rank's device: the best of half a second of square products.

    bf16 on a GPU; fp32 on one thread of a CPU, in products so small that other work hardly disturbs the best one.
    """
    on_gpu = dist.uses_cuda()
    size, dtype = (8192, torch.bfloat16) if on_gpu else (256, torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.ones(size, size, dtype=dtype, device=dist.device())
    best, deadline = float("inf"), time.monotonic() + MATMUL_SECONDS
    _timed(lambda: a @ a)
    while time.monotonic() < deadline:
        best = min(best, _timed(lambda: a @ a))
    torch.set_num_threads(threads)
    return 2 * size**3 / best


def latency_s() -> float:
    """Median time of an all-reduce of one number among the ranks of the group."""
    number = torch.zeros(1, device=dist.device())
    times = [_timed(partial(dist.all_reduce, number)) for _ in range(13)]
    return statistics.median(times[3:])  # the first ones connect


def bus_bandwidth() -> float:
    """Bytes a second that an all-reduce moves over each rank's link, as nccl-tests counts: 2 (n - 1) / n of its size.

    The size grows until one takes 20 ms; the best of half a second counts.
    """
    count = FIRST_BYTES
    while True:
        tensor = torch.zeros(count // 4, device=dist.device())
        seconds = _slowest(_timed(partial(dist.all_reduce, tensor)))
        if seconds > ENOUGH_SECONDS or count == LAST_BYTES:
            break
        count *= 4
    for _ in range(max(LEAST_REPEATS, min(MOST_REPEATS, int(REPEAT_SECONDS / seconds)))):
        seconds = min(seconds, _slowest(_timed(partial(dist.all_reduce, tensor))))
    return count / seconds * 2 * (dist.world() - 1) / dist.world()


def _slowest(seconds: float) -> float:
    """The longest time of any rank, so that all decide alike."""
    return float(dist.all_reduce(torch.tensor([seconds], device=dist.device()), "max"))


def _timed(work: Callable[[], object]) -> float:
    _finish()
    began = time.perf_counter()
    work()
    _finish()
    return time.perf_counter() - began


def _finish() -> None:
    if dist.uses_cuda():
        torch.cuda.synchronize()
