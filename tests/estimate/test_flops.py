"""The closed-form count of a step's operations against torch's counter on the step itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.step.count import count_flops
from benchmarks.step.sizes import SIZES, Size, build, make_batch
from benchmarks.step.variants import PASSES, every_word, padded
from mvlm.estimate.flops import FULL, NAIVE, Savings, Work, forward_flops, step_flops
from mvlm.kernels.ops import OPS
from mvlm.model.dimensions import dimensions
from tests.conftest import ROOT

WIDE_TEXT = "model.text_args={hidden_size=96, num_hidden_layers=1, num_attention_heads=2, intermediate_size=160, "
OTHER = dataclasses.replace(
    SIZES["tiny"],
    overrides=(
        *SIZES["tiny"].overrides,
        WIDE_TEXT + "max_position_embeddings=64}",
        "model.cross_depth=1",
        "model.decoder_depth=3",
    ),
)


@pytest.mark.parametrize("size", [SIZES["tiny"], OTHER])
@pytest.mark.parametrize(("padding", "masked"), [(50, False), (0, True)])
def test_the_naive_step_is_counted(size: Size, padding: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PASSES:
        monkeypatch.setattr(OPS[name], "choice", OPS[name].implementations[-1].name)
    model = build(size)
    model.text.packable = False
    batch = make_batch(size, model.grid)
    plain = padded(batch, padding, model.text.settings.pad_token_id)
    plain = plain if masked else dataclasses.replace(plain, masked=every_word(plain))
    counted = count_flops(lambda: sum(model(plain).values()).backward())
    work = Work.of(batch)
    work = dataclasses.replace(work, length=padding or work.length)
    flops = step_flops(dimensions(model), work, size.config.objectives, Savings(False, masked, False))
    assert sum(flops.values()) * len(batch) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("size", [SIZES["tiny"], OTHER])
@pytest.mark.parametrize(
    "objectives",
    [
        (),
        ("image=0",),
        ("text=0",),
        ("itm=0",),
        ("itc=0", "itm=0"),
        ("image=0", "text=0"),
        ("hide=both",),
        ("alignment_inputs=masked",),
        ("image_masking=drop",),
        ("image_masking=drop", "alignment_inputs=masked"),
        ("hide=both", "alignment_inputs=masked"),
        ("hide=both", "alignment_inputs=masked", "image_masking=drop"),
        ("image=0", "alignment_inputs=masked"),
        ("text=0", "itc=0", "itm=0"),
    ],
)
def test_the_models_own_step_is_counted(size: Size, objectives: tuple[str, ...]) -> None:
    size = dataclasses.replace(size, overrides=(*size.overrides, *(f"objectives.{name}" for name in objectives)))
    model = build(size)
    batch = make_batch(size, model.grid, pairs=16)
    counted = count_flops(lambda: sum(model(batch).values()).backward())
    flops = step_flops(dimensions(model), Work.of(batch), size.config.objectives, FULL)
    assert sum(flops.values()) * len(batch) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(("name", "than_30", "than_50"), [("full", 17, 24), ("small", 21, 28)])
def test_the_pages_name_what_a_step_saves(name: str, than_30: int, than_50: int) -> None:
    size = SIZES[name]
    with torch.device("meta"):
        model = build(size)
    work, sizes = Work.of(make_batch(size, model.grid)), dimensions(model)

    def total(savings: Savings, length: int) -> float:
        flops = step_flops(sizes, dataclasses.replace(work, length=length), size.config.objectives, savings)
        return sum(flops.values())

    saved = [100 * (1 - total(FULL, 30) / total(NAIVE, length)) for length in (30, 50)]
    assert [round(share) for share in saved] == [than_30, than_50]
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/performance.md")]
    for page in pages if name == "full" else pages[1:]:
        assert f"{than_30} %" in page and f"{than_50} %" in page


def test_sizes_are_read_from_a_model_without_weights() -> None:
    with torch.device("meta"):
        model = build(SIZES["small"])
    assert next(model.parameters()).is_meta
    sizes = dimensions(model)
    assert (sizes.vision.width, sizes.vision.depth, sizes.patches, sizes.vocabulary) == (384, 6, 196, 30522)
    assert sizes.vision.matrices == sizes.text.matrices == 6 * 12 * 384**2


def test_the_papers_model_costs_what_its_table_says() -> None:
    """GFLOP a pair, forward, as counted on the real model (docs/performance.md)."""
    with torch.device("meta"):
        sizes = dimensions(build(SIZES["full"]))
    objectives = SIZES["full"].config.objectives
    work = Work(
        length=50, tokens=30, squared_tokens=900, hidden_tokens=8, hidden_patches=120, restored_places=8, pool=1
    )
    naive = {name: value / 1e9 for name, value in forward_flops(sizes, work, objectives, NAIVE).items()}
    expected = {"vision": 70.3, "text": 17.2, "cross_image": 42.3, "cross_text": 16.0, "image_decoder": 10.6}
    for name, value in expected.items():
        assert naive[name] == pytest.approx(value, rel=0.01), name
