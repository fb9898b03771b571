"""The bytes of the roofline against counts by hand, and the page that shows them."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

from benchmarks.kernels import roofline
from benchmarks.kernels.roofline import Trace, by_kind, compiled


def test_bytes_and_operations_of_a_small_step() -> None:
    x, w = (torch.empty(16, 16, dtype=torch.bfloat16, device="meta") for _ in "xw")
    with Trace() as traced:
        y = x @ w
        z = F.gelu(y) + y
        (z @ w)[:, :4].sum(0)
    one = 2 * 16 * 16
    eager, joined = by_kind(traced.operations), by_kind(compiled(traced.operations))
    assert eager["products"]["operations"] == joined["products"]["operations"] == 2 * 2 * 16**3
    assert eager["products"]["bytes"] == joined["products"]["bytes"] == 6 * one
    assert (eager["GELU"]["bytes"], eager["element-wise, as of residuals"]["bytes"]) == (2 * one, 3 * one)
    # A single kernel reads y and writes z; its GELU is read by nothing else.
    assert (joined["GELU"]["bytes"], joined["element-wise, as of residuals"]["bytes"]) == (one, one)
    assert eager["sums, as of bias gradients"]["bytes"] == one // 4 + 8 == joined["sums, as of bias gradients"]["bytes"]


def test_tensors_for_the_backward_pass_are_written_and_read_again() -> None:
    x, w = (torch.empty(16, 16, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in "xw")
    with Trace() as traced:
        loss = F.gelu(x.mul(2)) @ w
        traced.backward = True
        loss.backward(loss.detach())
    one = 2 * 16 * 16
    joined = by_kind(compiled(traced.operations))
    # Forward reads x and writes 2x and its GELU; backward reads 2x and the gradient, and writes the gradient of x.
    assert joined["GELU"]["bytes"] + joined["element-wise, as of residuals"]["bytes"] == (3 + 3) * one


def test_the_page_shows_the_stored_result() -> None:
    kept = json.loads(roofline.KEPT.read_text(encoding="utf-8"))
    assert f"{roofline.BEGIN}{roofline.table(kept)}{roofline.END}" in roofline.PAGE.read_text(encoding="utf-8")


def test_fused_kernels_move_fewer_bytes() -> None:
    eager, _ = roofline.trace({}, "tiny")
    fused, _ = roofline.trace({"residual_norm": "triton", "gelu_linear": "triton", "attention": "efficient"}, "tiny")
    for kind in ("GELU", "element-wise, as of residuals", "sums, as of bias gradients", "copies"):
        assert by_kind(fused)[kind]["bytes"] < by_kind(eager)[kind]["bytes"]
    assert by_kind(fused)["products"] == by_kind(eager)["products"]
