"""The fused kernels, compiled for an A100 and an H100: no register spills, and no value is moved twice."""

from __future__ import annotations

import os
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from benchmarks.kernels import fused


@pytest.mark.parametrize("capability", fused.CAPABILITIES)
@pytest.mark.parametrize("name", fused.KERNELS)
def test_a_fused_kernel_moves_no_more_bytes_than_it_must_and_spills_nothing(name: str, capability: int) -> None:
    kernel = fused.KERNELS[name]
    compiled = fused.build(kernel, capability)
    assert compiled.spilled == 0
    assert compiled.bytes_a_value == 2 * kernel.passes + kernel.extra
    assert compiled.registers * 32 * kernel.warps <= 65536 // 4  # so that four programs fit a multiprocessor


def test_the_page_lists_every_kernel() -> None:
    table = fused.PAGE.read_text(encoding="utf-8").split(fused.BEGIN)[1].split(fused.END)[0]
    assert re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE) == ["kernel", *fused.KERNELS]
