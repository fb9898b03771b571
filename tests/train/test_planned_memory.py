"""The planned memory and operations of a step against those of the real engine's step."""

from __future__ import annotations

import pytest

from benchmarks.plan.compare import Case, compare
from mvlm.kernels.probes import cpu_has_bf16_products

CASES = [
    Case("tiny", "fp32", 1, 16),
    Case("tiny", "bf16", 2, 8, accumulation=2),
    Case("tiny", "bf16", 3, 16, overrides=("train.recompute=1", "objectives.image=0", "objectives.itc=0")),
    Case("tiny", "fp32", 0, 16, overrides=("objectives.image_masking=drop", "model.cross_norm=post")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, vars(case).values())))
def test_memory_and_operations_are_as_planned(one_rank: None, case: Case) -> None:
    found = compare(case)
    # Planned for CPUs with bf16: the others compute it by other kernels, which hold a little less.
    by_others = case.precision == "bf16" and not cpu_has_bf16_products()
    tolerance = 0.15 if by_others else 0.1  # 15 % is what is promised
    assert found.planned_memory == pytest.approx(found.measured_memory, rel=tolerance)
    assert found.planned_flops == pytest.approx(found.counted_flops, rel=0.03)
