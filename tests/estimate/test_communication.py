"""The communication of plans against what DeepSpeed and the losses were counted to send (benchmarks/comm)."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pytest

from benchmarks.comm.issued import BUCKET, RESULTS
from mvlm.estimate.cards import CARDS
from mvlm.estimate.communication import feature_bytes, gathered_again, small_reductions
from mvlm.estimate.fabric import Fabric
from mvlm.training.zero.memory import REUSED

KEPT = json.loads(RESULTS.read_text())
BF16 = 2


@pytest.mark.parametrize("found", KEPT, ids=lambda found: f"{found['case']}-{found['ranks']}")
def test_planned_calls_and_bytes_are_those_counted(found: dict[str, Any]) -> None:
    stage, calls, sent = int(found["case"].split(",")[0][-1]), found["calls"], found["bytes"]
    weights, buckets = found["parameters"] * BF16, math.ceil(found["parameters"] / BUCKET)
    small = small_reductions(stage, found["groups"], itc=True)
    contrast = 2  # features with identities, and log-sum-exps
    features = found["pairs"] * found["ranks"] * (feature_bytes(found["width"]) + 8)
    if stage == 3:
        assert calls["all_reduce"] == small + contrast
        gathered = 1 + gathered_again(found["parameters"], REUSED, accumulation=1)
        assert sent["all_gather_into_tensor"] == pytest.approx(gathered * weights, rel=0.001)
        assert sent["reduce_scatter_tensor"] == pytest.approx(weights, rel=0.001)
        return
    assert calls.get("all_gather_into_tensor", 0) == (found["groups"] if stage else 0)
    if found["case"].endswith(", reduce"):
        assert calls["all_reduce"] == small + contrast
        assert calls["reduce"] <= buckets + found["ranks"] * found["groups"]
        assert sent["reduce"] == pytest.approx(weights, rel=0.001)
        return
    # buckets are not quite full
    assert calls["all_reduce"] - small - contrast == pytest.approx(buckets, abs=3)
    assert sent["all_reduce"] == pytest.approx(weights + features, rel=0.001)


@pytest.mark.parametrize("found", KEPT, ids=lambda found: f"{found['case']}-{found['ranks']}")
def test_gradients_are_reduced_during_backward_as_planned(found: dict[str, Any]) -> None:
    """Reductions begin within the first quarter of the gradients, and only that of the last bucket is at the end."""
    when = found["when"]
    if found["case"].endswith(", late"):
        assert set(when) == {1.0}
        return
    assert when[0] < 0.25 and sorted(when) == when
    assert statistics.median(when) < 0.7
    assert 1 <= when.count(1.0) <= 2


def test_reducing_features_is_faster_than_gathering_them_on_many_gpus() -> None:
    """Below 64 GPUs it is slower, by less than 0.1 ms."""
    for ranks in (8, 16, 64, 512, 4096):
        fabric, count = Fabric(CARDS["h100"], ranks, 8), 64 * ranks * feature_bytes(256)
        assert fabric.reduce(count) < fabric.gather(count) + (0 if ranks >= 64 else 1e-4)


def test_reductions_to_single_ranks_cost_more_than_an_all_reduce_across_nodes() -> None:
    """They send half the bytes, but for each rank and group in a chain through all ranks."""
    weights, buckets, groups, h100 = 0.67e9, 11, 4, CARDS["h100"]
    for ranks in (64, 512, 4096):
        fabric = Fabric(h100, ranks, 8)
        assert fabric.deliver(weights, buckets + ranks * groups) > 3 * fabric.reduce(weights, buckets)
