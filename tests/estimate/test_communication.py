"""What is planned to be sent is what DeepSpeed and the losses were counted to send (benchmarks/comm)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks.comm.issued import BUCKET, RESULTS
from mvlm.estimate.cards import CARDS
from mvlm.estimate.communication import AT_ONCE, Fabric, small_reductions
from mvlm.runtime.dist import BY_SUM_FROM

KEPT = json.loads(RESULTS.read_text())
BF16 = 2


@pytest.mark.parametrize("found", KEPT, ids=lambda found: f"{found['case']}-{found['ranks']}")
def test_the_plan_has_the_calls_and_bytes_that_were_counted(found: dict[str, Any]) -> None:
    stage, calls, sent = int(found["case"].split(",")[0][-1]), found["calls"], found["bytes"]
    weights, buckets = found["parameters"] * BF16, math.ceil(found["parameters"] / BUCKET)
    small = small_reductions(stage, found["groups"], itc=True)
    if stage == 3:
        assert calls["all_reduce"] == small
        return
    contrast = 2  # features with identities, and log-sum-exps
    assert calls["all_gather_into_tensor"] == contrast + (found["groups"] if stage else 0)
    if "reduce" in found["case"]:
        assert calls["all_reduce"] == small
        assert calls["reduce"] <= buckets + found["ranks"] * found["groups"]
        assert sent["reduce"] == pytest.approx(weights, rel=0.001)
        return
    pieces = math.ceil(found["parameters"] / AT_ONCE) if stage == 0 else buckets
    assert calls["all_reduce"] - small == pytest.approx(pieces, abs=3)  # no bucket is filled to its last number
    assert sent["all_reduce"] == pytest.approx(weights, rel=0.001)


def test_a_sum_is_the_faster_all_gather_from_so_many_ranks() -> None:
    pair, h100 = 2064.0, CARDS["h100"]
    for ranks in (8, 16, BY_SUM_FROM, 512, 4096):
        fabric = Fabric(h100, ranks, 8)
        count = 64 * ranks * pair
        assert (fabric.reduce(count) < fabric.gather(count)) == (ranks >= BY_SUM_FROM)


def test_reductions_to_single_ranks_cost_more_than_an_all_reduce_of_several_nodes() -> None:
    """Half the bytes, but a chain as long as there are ranks for each rank and group."""
    weights, buckets, groups, h100 = 0.67e9, 11, 4, CARDS["h100"]
    for ranks in (64, 512, 4096):
        fabric = Fabric(h100, ranks, 8)
        assert fabric.deliver(weights, buckets + ranks * groups) > 3 * fabric.reduce(weights, buckets)
