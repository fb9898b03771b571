"""What torch's compiler makes of the blocks: one graph each."""

from __future__ import annotations

import pytest
import torch

from benchmarks.step.sizes import SIZES, build, make_batch
from mvlm.config.schema import Kernels
from mvlm.kernels.layers import use_kernels
from mvlm.training.blocks import find_blocks
from mvlm.training.kernels import settle_run
from mvlm.training.parallelize import COMPILED_VARIANTS


def test_every_block_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fullgraph` makes an error of what would end one, as `slice.indices` did in a cross block on torch 2.11."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", COMPILED_VARIANTS)
    torch.compiler.reset()
    model = build(SIZES["tiny"])
    settle_run(Kernels())
    use_kernels(model)
    batch = make_batch(SIZES["tiny"], model.grid)
    blocks = list(find_blocks(model))
    for block in blocks:
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
    expected = float(sum(model(batch).values()))
    torch.compiler.reset()
    for block in blocks:
        del block.forward
    assert float(sum(model(batch).values())) == pytest.approx(expected, rel=1e-6)
