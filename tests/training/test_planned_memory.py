"""The planned memory and operations of a step against those of the real engine's step."""

from __future__ import annotations

import pytest

from benchmarks.plan.compare import Case, compare

CASES = [
    Case("tiny", "bf16", 2, 8, accumulation=2),
]
MORE = [
    Case("tiny", "bf16", 3, 16, overrides=("train.recompute=1", "objectives.image=0", "objectives.itc=0")),
    Case("tiny", "fp32", 1, 16),
    Case("tiny", "fp32", 1, 4, overrides=("optim.name=muon",)),
    Case("tiny", "fp32", 0, 16, overrides=("objectives.image_masking=drop", "model.cross_norm=post")),
    Case("tiny", "bf16", 1, 16, overrides=("objectives.hide=both", "objectives.alignment_inputs=masked")),
]


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.campaign) for case in MORE)],
    ids=lambda case: "-".join(map(str, vars(case).values())),
)
def test_memory_and_operations_are_as_planned(one_rank: None, case: Case) -> None:
    found = compare(case)
    assert found.planned_memory == pytest.approx(found.measured_memory, rel=0.12)  # on AMD's CPUs 10 % low in fp32
    assert found.planned_flops == pytest.approx(found.counted_flops, rel=0.03)
