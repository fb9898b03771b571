"""Operations counted with fake tensors against the same step with real ones, and the figures on the pages."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step.sizes import SIZES, build, make_batch
from benchmarks.step.variants import PASSES, every_word, padded
from mvlm.batch import Batch, apply
from mvlm.estimate.count import UNIT, FakeModel
from mvlm.estimate.parts import FlopsByPart
from mvlm.estimate.synthetic import synthetic_batch
from mvlm.kernels.ops import OPS
from mvlm.model.flops import _RememberedShapes, count_flops, flop_counter, without_values
from mvlm.model.maskvlm import MaskVLM
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

OBJECTIVES = (
    (),
    ("itc=0", "itm=0"),
    ("image=0", "text=0"),
    ("hide=both",),
    ("alignment_inputs=masked",),
    ("image_masking=drop",),
)
TOGETHER = (
    ("image_masking=drop", "alignment_inputs=masked"),
    ("hide=both", "alignment_inputs=masked"),
    ("hide=both", "alignment_inputs=masked", "image_masking=drop"),
    ("image=0", "alignment_inputs=masked"),
    ("text=0", "itc=0", "itm=0"),
)
ALL = [*OBJECTIVES, *(pytest.param(together, marks=pytest.mark.campaign) for together in TOGETHER)]


@pytest.mark.parametrize("objectives", ALL, ids=" ".join)
def test_a_fake_step_has_as_many_operations_as_the_real_one(
    objectives: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (SIZES["tiny"], OTHER)[[*OBJECTIVES, *TOGETHER].index(objectives) % 2]
    size = dataclasses.replace(size, overrides=(*size.overrides, *(f"objectives.{name}" for name in objectives)))
    model, config = build(size), size.config
    fake = FakeModel(model, config.data)
    batch = synthetic_batch(model, config.data, [config.data.text_length] * UNIT)
    batch = apply(batch, lambda tensor: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor)
    monkeypatch.setattr(OPS["linear"], "choice", "torch")  # on a CPU, gradients of biases are summed by products
    with flop_counter() as counter:
        loss = sum(model(batch).values())
        forward = counter.get_total_flops()
        loss.backward()
    assert sum(fake.flops().forward.values()) * len(batch) == forward
    assert sum(fake.flops().step.values()) * len(batch) == counter.get_total_flops()


Counted = tuple[dict[str, float], float]
"""GFLOP per pair: those of the forward pass by part, and those of forward and backward pass together."""


def counted(model: MaskVLM, batch: Batch) -> Counted:
    with without_values(model) as (fake, made), flop_counter() as counter:
        parts = FlopsByPart(counter, fake)
        loss = sum(fake(made(batch)).values())
        forward = parts.until_now()
        loss.backward()
    scale = len(batch) * 1e9
    return {part: flops / scale for part, flops in forward.items()}, parts.until_now().total() / scale


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.campaign) for name in ("full", "small")])
def by_rung(request: pytest.FixtureRequest) -> tuple[str, list[Counted]]:
    """The naive step with text padded to 50 and 30 tokens, and the model's own step."""
    size = SIZES[request.param]
    with torch.device("meta"):
        model = build(size)
    batch = make_batch(size, model.grid)
    with pytest.MonkeyPatch.context() as patch:
        for name in PASSES:
            patch.setattr(OPS[name], "choice", OPS[name].implementations[-1].name)
        patch.setattr(model.text, "packable", False)
        texts = [padded(batch, length, model.text.settings.pad_token_id) for length in (50, 30)]
        rungs = [counted(model, dataclasses.replace(text, masked=every_word(text))) for text in texts]
    return request.param, [*rungs, counted(model, batch)]


def test_the_pages_state_what_a_step_saves(by_rung: tuple[str, list[Counted]]) -> None:
    name, ((_, to_50), (_, to_30), (_, own)) = by_rung
    saved = [round(100 * (1 - own / naive)) for naive in (to_30, to_50)]
    assert saved == {"full": [17, 24], "small": [21, 28]}[name]
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/performance.md")]
    for page in pages if name == "full" else pages[1:]:
        assert f"{saved[0]} %" in page and f"{saved[1]} %" in page


def test_the_cost_of_the_papers_model_is_that_of_the_table(by_rung: tuple[str, list[Counted]]) -> None:
    """GFLOP per pair in the forward pass, docs/performance.md."""
    name, ((naive, _), _, (own, _)) = by_rung
    if name == "full":
        expected = {"vision": (70.3, 70.0), "text": (17.2, 6.3), "cross_image": (42.3, 30.1)}
        expected |= {"cross_text": (15.9, 5.7), "image_decoder": (10.7, 9.4)}
        for part, (before, after) in expected.items():
            assert (naive[part], own[part]) == pytest.approx((before, after), rel=0.01), part


@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_convolution_of_groups_counts_as_one_convolution_per_group(kind: type[torch.nn.Conv2d]) -> None:
    """As in EfficientNet, forward and backward."""
    x_BCHW = torch.randn(2, 8, 6, 6, requires_grad=True)
    grouped, apart = kind(8, 4, 3, groups=4), [kind(2, 1, 3) for _ in range(4)]
    with FlopCounterMode(display=False) as torchs:
        torch.cat([one(x) for one, x in zip(apart, x_BCHW.chunk(4, 1), strict=True)], 1).sum().backward()
    assert count_flops(lambda: grouped(x_BCHW).sum().backward()) == torchs.get_total_flops() > 0


class Computed(TorchDispatchMode):
    """Names of the operations that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_an_operation_on_the_same_shapes_is_computed_once() -> None:
    with Computed() as computed, _RememberedShapes():
        x_BCHW = torch.empty(2, 3, 8, 8, device="meta").to(memory_format=torch.channels_last)
        scale, bias = torch.empty(8, device="meta"), torch.empty(8, device="meta", dtype=torch.float64)
        results = [[x_BCHW * scale, *torch.max(x_BCHW, -1), x_BCHW * bias, x_BCHW + 1, x_BCHW + 2] for _ in range(3)]
        views = [x_BCHW.flatten(2), x_BCHW.flatten(2)]
        x_BCHW.add_(1).add_(1)
    described = [[(each.shape, each.stride(), each.dtype) for each in result] for result in results]
    assert described[0] == described[1] == described[2]
    assert described[0][0][1] == x_BCHW.stride() and described[0][3][2] == torch.float64
    assert len({id(each.untyped_storage()) for result in results for each in result}) == 18  # each has its own memory
    assert views[0].untyped_storage().data_ptr() == views[1].untyped_storage().data_ptr()
    assert [computed.names.count(name) for name in ("mul.Tensor", "max.dim", "add.Tensor")] == [2, 1, 2]
    assert computed.names.count("add_.Tensor") == 2
