"""Compiled blocks, and blocks that backward recomputes: the same training, with less kept in memory."""

from __future__ import annotations

import itertools
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.step.sizes import SIZES, make_batch
from benchmarks.step.sizes import build as build_size
from mvlm.config.schema import Kernels
from mvlm.data.loading.collate import pack
from mvlm.errors import UserError
from mvlm.kernels.layers import use_kernels
from mvlm.model.text import PACKABLE
from mvlm.pretrained.encoders import build_text_encoder
from mvlm.training.blocks import evenly, find_blocks, find_runs
from mvlm.training.compilation import compile_blocks
from mvlm.training.kernels import settle_run
from mvlm.training.parallelize import recompute_blocks
from tests.model.test_text import configuration, texts
from tests.training.test_kernels import build


def make_vit(depth: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=depth, num_classes=0)


def gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    value = model(torch.randn(2, 3, 64, 64)).square().sum()
    value.backward()
    return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def kept(model: nn.Module) -> int:
    """Bytes of the values, weights apart, that stay in memory between forward and backward."""
    alive: dict[int, weakref.ref] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    class Note(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in weights:
                    storage = tensor.untyped_storage()
                    alive[storage.data_ptr()] = weakref.ref(storage)
            return out

    with Note():
        value = model(torch.randn(2, 3, 64, 64)).sum()
    total = sum(s.nbytes() for ref in alive.values() if (s := ref()) is not None)
    value.backward()
    return total


def test_the_blocks_of_all_encoders_are_found() -> None:
    names = [type(block).__name__ for block in find_blocks(build("model.cross_depth=2", "model.decoder_depth=3")[0])]
    assert names == ["Block", "RobertaLayer", *["CrossBlock"] * (2 + 2 + 3)]


@pytest.mark.parametrize(("depth", "runs"), [(1, [1]), (4, [4]), (5, [2, 3]), (9, [3, 3, 3]), (12, [4, 4, 4])])
def test_blocks_are_run_together_four_by_four_at_most(depth: int, runs: list[int]) -> None:
    model = nn.Sequential(nn.Sequential(*(SmallBlock() for _ in range(depth))))
    found = list(find_runs(model))
    assert [len(run) for run in found] == runs
    assert [block for run in found for block in run] == list(model[0]) == list(find_blocks(model))


def assert_chained(model: nn.Module, forward: Callable[[], object]) -> None:
    """Each block of a run takes the result of the one before it, and otherwise exactly what that one took."""
    calls: dict[nn.Module, tuple[tuple[object, ...], dict[str, object], object]] = {}
    for block in find_blocks(model):
        block.register_forward_hook(lambda block, *call: calls.update({block: call}), with_kwargs=True)
    forward()
    for run in find_runs(model):
        for one, other in itertools.pairwise(run):
            (_, *given), named, result = calls[one]
            (taken, *others), others_named, _ = calls[other]
            assert isinstance(result, Tensor) and taken is result
            assert [*map(id, others), *map(id, others_named.values())] == [*map(id, given), *map(id, named.values())]
            assert others_named.keys() == named.keys()


def test_the_blocks_of_a_model_are_chained() -> None:
    size = SIZES["tiny"]
    model = build_size(replace(size, overrides=(*size.overrides, "model.cross_depth=3", "model.decoder_depth=3")))
    assert [len(run) for run in find_runs(model)] == [2, 2, 3, 3, 3]
    assert_chained(model, lambda: model(make_batch(size, model.grid)))


@pytest.mark.parametrize("kind", PACKABLE)
def test_the_blocks_of_a_packable_text_encoder_are_chained(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    encoder = build_text_encoder(configuration(kind).model, tokenizer)
    text, valid = texts((3, 12, 7), tokenizer.pad_token_id)
    assert [len(run) for run in find_runs(encoder)] == ([1] if kind == "albert" else [2])
    assert_chained(encoder, lambda: encoder(text, valid, pack(valid)))


def test_the_blocks_of_other_text_encoders_are_not(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = build_text_encoder(configuration("mpnet").model, tokenizer)
    assert [len(run) for run in find_runs(encoder)] == [1, 1]


def test_stages_of_blocks_are_not_run_together() -> None:
    model = timm.create_model("convnext_tiny", depths=(2, 2, 2, 2), dims=(8, 8, 8, 8), num_classes=0)
    assert [len(run) for run in find_runs(model)] == [1] * 4


@pytest.mark.parametrize(
    ("share", "picked"), [(0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (0.75, [1, 2, 3, 5, 6, 7]), (1, [*range(8)])]
)
def test_a_share_of_the_blocks_is_spread_over_them(share: float, picked: list[int]) -> None:
    assert evenly([*range(8)], share) == picked


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_recomputed_blocks_train_the_same_bits(share: float) -> None:
    expected, model = gradients(make_vit()), make_vit()
    names = [*model.state_dict()]
    recompute_blocks(model, share)
    for found, wanted in zip(gradients(model), expected, strict=True):
        assert torch.equal(found, wanted)
    assert [*model.state_dict()] == names


def test_recomputation_draws_the_same_dropout() -> None:
    models = []
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        models.append(
            timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0, proj_drop_rate=0.5)
        )
        recompute_blocks(models[-1], share)
    for found, wanted in zip(*map(gradients, models), strict=True):
        assert torch.equal(found, wanted)


def test_memory_falls_with_the_share() -> None:
    sizes = []
    for share in (0.0, 0.5, 1.0):
        model = make_vit()
        recompute_blocks(model, share)
        sizes.append(kept(model))
    none, half, whole = sizes
    assert whole < 0.25 * none
    assert half == pytest.approx((none + whole) / 2, rel=0.1)


class SmallBlock(nn.Module):
    """Quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.feed_forward = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(x)


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_compiled_and_recomputed_blocks_train_alike() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(*(SmallBlock() for _ in range(6)))), torch.randn(4, 8)
    names, results = [*model.state_dict()], []
    for ready in (False, True):
        if ready:
            settle_run(Kernels())
            use_kernels(model)
            recompute_blocks(model, 0.5)
            compile_blocks(model, stage=2)
        model.zero_grad()
        value = model(x)
        value.square().sum().backward()
        results.append([value.detach(), *(parameter.grad for parameter in model.parameters())])
    for found, wanted in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert [*model.state_dict()] == names
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_stage_3_cannot_be_compiled() -> None:
    with pytest.raises(UserError, match=r"train\.compile cannot be combined with ZeRO stage 3"):
        compile_blocks(make_vit(1), stage=3)


def test_a_missing_compiler_is_reported_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"train\.compile needs a C\+\+ compiler"):
        compile_blocks(make_vit(1), stage=0)
