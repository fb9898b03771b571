"""The share of its device's peak that a run uses, against torch's own count of a step's operations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.step.sizes import SIZES, build, make_batch
from mvlm.model.flops import count_flops
from mvlm.training.logging.mfu import Arithmetic, FlopsOfBatches, peak_flops
from mvlm.training.parallelize import freeze


def test_mfu_is_the_share_of_executed_operations() -> None:
    """Though only the first batch's operations are counted, and others have captions of other lengths."""
    size = SIZES["tiny"]
    model = build(size)
    arithmetic = Arithmetic(FlopsOfBatches(model), peak=1e12)
    for pairs, shortest in ((8, 8), (8, 25), (8, 30), (16, 8)):
        batch = make_batch(size, model.grid, pairs, shortest)
        counted = count_flops(lambda batch=batch: sum(model(batch).values()).backward())
        found = arithmetic.metrics([batch, batch], pairs_per_s=50.0)
        assert found["tflops"] == pytest.approx(50.0 * counted / len(batch) / 1e12, rel=0.01)
        assert found["mfu"] == found["tflops"]
        counted_itself = Arithmetic(FlopsOfBatches(model), peak=None).metrics([batch], 50.0)
        assert found["tflops"] == pytest.approx(counted_itself["tflops"], rel=1e-9)
    assert Arithmetic(FlopsOfBatches(model), peak=None).metrics([batch], 50.0).keys() == {"tflops"}
    assert Arithmetic(None, peak=1e12).metrics([batch], 50.0) == {}


@pytest.mark.parametrize("frozen", [("vision", "text"), ("text.model.embeddings", "cross_text.blocks.0")])
def test_gradients_of_frozen_parts_are_not_counted(frozen: tuple[str, ...]) -> None:
    size = SIZES["tiny"]
    model = build(size)
    batch = make_batch(size, model.grid)
    found = Arithmetic.of(model, frozen, {}).metrics([batch], pairs_per_s=50.0)["tflops"]
    freeze(model, frozen)
    counted = count_flops(lambda: sum(model(batch).values()).backward())
    assert found == pytest.approx(50.0 * counted / len(batch) / 1e12, rel=0.01)


def test_an_encoder_that_passes_its_layers_a_parameter_is_counted() -> None:
    """As DeBERTa passes the embeddings of distances."""
    text = "relative_attention=true, pos_att_type=['p2c','c2p'], num_hidden_layers=1, num_attention_heads=2"
    words = ("model.text=deberta-v2", f"model.text_args={{{text}, hidden_size=32, intermediate_size=64}}")
    size = SIZES["tiny"]
    size = replace(size, overrides=(*size.overrides, *words))
    model = build(size)
    assert Arithmetic(FlopsOfBatches(model), peak=None).metrics([make_batch(size, model.grid)], 50.0)["tflops"] > 0


def test_a_run_goes_on_without_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    size = SIZES["tiny"]
    model = build(size)
    model.text.register_forward_pre_hook(lambda text, given: given[0].sum().item() and None)
    flops, batch = FlopsOfBatches(model), make_batch(size, model.grid)
    assert (
        Arithmetic(flops, peak=None).metrics([batch], 50.0) == Arithmetic(flops, peak=None).metrics([batch], 50.0) == {}
    )
    assert capsys.readouterr().err.count("tflops and mfu are left out") == 1


@pytest.mark.parametrize(
    ("name", "low_precision", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", True, False, 989e12),
        ("NVIDIA H100 80GB HBM3", False, False, 67e12),
        ("NVIDIA H100 80GB HBM3", False, True, 494e12),
        ("NVIDIA H100 PCIe", True, False, 756e12),
        ("NVIDIA H200", True, False, 989e12),
        ("NVIDIA GH200 480GB", True, False, 989e12),
        ("NVIDIA A100-SXM4-80GB", True, False, 312e12),
        ("NVIDIA A10", True, False, 125e12),
        ("NVIDIA L40S", True, False, 362e12),
        ("NVIDIA L4", True, False, 121e12),
        ("Tesla V100-SXM2-16GB", True, False, 125e12),
        ("Tesla T4", True, False, 65e12),
        ("NVIDIA A10G", True, False, None),
        ("NVIDIA L400", True, False, None),
        ("NVIDIA T400 4GB", True, False, None),
        ("some other card", True, False, None),
    ],
)
def test_the_peak_is_that_of_the_card(name: str, low_precision: bool, tf32: bool, peak: float | None) -> None:
    assert peak_flops(name, low_precision, tf32) == peak
