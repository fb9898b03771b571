"""Which rank is slow, and how far the ranks are apart."""

from __future__ import annotations

import statistics

import torch

from mvlm.runtime import dist


def spread(step_s: float, data_wait_s: float, others_wait_s: float) -> dict[str, float | int]:
    """Minimum, median and maximum over the ranks; all ranks must call, and it travels over the host.

    Args:
        step_s, data_wait_s, others_wait_s: this rank's mean seconds a step: in all, waiting for data, and waiting
            for the other ranks where they meet.

    Returns:
        The same flat metrics on every rank. `slowest_rank` is the one that waits least for the others, since a
        step takes all of them equally long.
    """
    rows_R3 = dist.all_gather(torch.tensor([[step_s, data_wait_s, others_wait_s]], dtype=torch.float64)).tolist()
    step, data_wait, others_wait = ([row[column] for row in rows_R3] for column in range(3))
    metrics: dict[str, float | int] = {}
    for name, values in (("step_s", step), ("data_wait_s", data_wait)):
        metrics[f"{name}_min"] = min(values)
        metrics[f"{name}_median"] = statistics.median(values)
        metrics[f"{name}_max"] = max(values)
    return metrics | {"slowest_rank": others_wait.index(min(others_wait))}
