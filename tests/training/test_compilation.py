"""When runs of blocks are compiled, how often, and what happens if the compiler fails."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._inductor.utils import fresh_cache

from benchmarks.gpu.proven import why_not_compiled
from benchmarks.gpu.record import Line
from benchmarks.kept import read_records
from benchmarks.step.sizes import SIZES, build
from mvlm.batch import IGNORE, Batch
from mvlm.config.schema import Kernels, Train
from mvlm.data.loading.collate import collate_pairs
from mvlm.data.samples.captions import COARSE
from mvlm.data.samples.pairs import Pair
from mvlm.errors import UserError
from mvlm.kernels.layers import use_kernels
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.training import compilation
from mvlm.training.blocks import find_blocks
from mvlm.training.compilation import compile_blocks, is_compiled
from mvlm.training.kernels import settle_run
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks/gpu/results"
PAIRS = 32


def batches(model: MaskVLM, count: int) -> Iterator[Batch]:
    """Captions of 5 to 30 tokens, padded as in a compiled run."""
    length = SIZES["tiny"].config.data.text_length
    drawn = np.random.default_rng(0)
    for number in range(count):
        texts = [np.arange(tokens) + 5 for tokens in drawn.integers(5, length + 1, PAIRS)]
        masks = [drawn.permutation(len(text)) < max(1, 0.3 * len(text)) for text in texts]
        pairs = [
            Pair(
                images=np.empty(0),
                flip=False,
                patch_mask_N=np.arange(model.grid[0] * model.grid[1]) < 4,
                text_L=text,
                masked_text_L=np.where(mask, 4, text),
                target_L=np.where(mask, text, IGNORE),
                position=number * PAIRS + place,
                row=number * PAIRS + place,
            )
            for place, (text, mask) in enumerate(zip(texts, masks, strict=True))
        ]
        images = torch.zeros(1, PAIRS, 3, 32, 32, dtype=torch.uint8)
        yield collate_pairs(pairs, images, 1, length, COARSE)


def ready() -> MaskVLM:
    model = build(SIZES["tiny"])
    settle_run(Kernels())
    use_kernels(model)
    return model


def total(model: MaskVLM, batch: Batch) -> float:
    return sum(loss.item() for loss in model(batch).values())


def test_captions_of_a_hundred_steps_compile_a_few_sizes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fullgraph` raises an error at whatever would break a run's graph, as `slice.indices` did on torch 2.11."""
    torch.compiler.reset()
    counter, model = CompileCounter(), ready()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    compile_blocks(model, stage=2)
    by_size: dict[tuple[int, int, int], list[Batch]] = {}
    for batch in batches(model, 100):
        size = len(batch.packing.token_T), batch.text_BL.shape[1], batch.masked.token_BC.shape[1]
        by_size.setdefault(size, []).append(batch)
    assert len(by_size) <= 6
    most_met = sorted(by_size.values(), key=len)[-2:]

    found = [total(model, of_a_size[0]) for of_a_size in most_met]
    graphs = counter.frame_count
    assert graphs == 5 + 1  # the stacks of blocks at their first size, and the text encoder's at another
    for of_a_size in most_met:
        model(of_a_size[-1])
    assert counter.frame_count == graphs

    torch.compiler.reset()
    for block in find_blocks(model):
        del block.forward
    assert found == pytest.approx([total(model, of_a_size[0]) for of_a_size in most_met], rel=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_a_compiler_that_fails_is_reported_once_and_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "false"))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(*(_Block() for _ in range(3)))), torch.randn(4, 8)
    expected = model(x)
    with fresh_cache():
        compile_blocks(model, stage=0)
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x), expected)
    sentences = [line for line in capsys.readouterr().err.splitlines() if "train.compile: the compiler fails" in line]
    assert len(sentences) == 1 and sentences[0].endswith("so blocks run uncompiled.")


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def test_each_size_is_compiled_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's default the second would be compiled for any size, and the third would use that."""
    torch.compiler.reset()
    counter, model = CompileCounter(), nn.Sequential(nn.Sequential(_Block()))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    compile_blocks(model, stage=0)
    for rows in (4, 5, 6, 5):
        model(torch.randn(rows, 8))
    assert counter.frame_count == 3


def test_an_evaluation_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, model = CompileCounter(), nn.Sequential(nn.Sequential(_Block(), _Block()))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    x = torch.randn(4, 8)
    expected = model(x)
    compile_blocks(model, stage=0)
    assert torch.equal(model.eval()(x), expected)
    assert counter.frame_count == 0
    assert torch.equal(model.train()(x), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("choice", "proof", "gpu", "stage", "expected"),
    [
        ("auto", "", True, 0, False),
        ("auto", "some.jsonl", True, 0, True),
        ("auto", "some.jsonl", False, 0, False),
        ("auto", "some.jsonl", True, 3, False),
        (True, "", False, 2, True),
        (False, "some.jsonl", True, 0, False),
        ("captured", "", True, 1, True),
    ],
)
def test_auto_compiles_on_a_gpu_with_a_proof(
    monkeypatch: pytest.MonkeyPatch, choice: Any, proof: str, gpu: bool, stage: int, expected: bool
) -> None:
    monkeypatch.setattr(compilation, "PROOF", proof)
    monkeypatch.setattr(dist, "uses_cuda", lambda: gpu)
    assert is_compiled(Train(compile=choice), configured(stage)) is expected


def configured(stage: int, accumulation: int = 1) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}, "gradient_accumulation_steps": accumulation}


def test_captured_steps_take_no_accumulation() -> None:
    with pytest.raises(UserError, match=r'train\.compile = "captured" cannot be combined with accumulation'):
        is_compiled(Train(compile="captured"), configured(1, accumulation=2))


def update(way: str, pairs_per_s: float = 900.0, losses: tuple[float, ...] = (19.5, 19.0, 18.5)) -> Line:
    return {"pairs": 128, "kind": "update", "way": way, "pairs_per_s": pairs_per_s, "losses": list(losses)}


EAGER = update("eager", 800.0)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([EAGER, update("compiled")], None),
        ([EAGER, update("compiled", losses=(19.51, 18.99, 18.6))], None),
        ([EAGER, update("compiled", losses=(19.5, 19.0, 19.1))], "their losses differ"),
        ([EAGER, update("compiled", losses=(19.5, math.nan, 18.5))], "their losses differ"),
        ([EAGER, update("compiled", losses=())], "their losses differ"),
        ([EAGER, update("compiled", 799.0)], "no faster"),
        ([EAGER, {"pairs": 128, "kind": "update", "way": "compiled", "failure": "OutOfMemoryError"}], "OutOfMemory"),
        ([EAGER, update("captured")], "not been measured"),
        ([update("compiled")], "not been measured"),
        ([EAGER | {"kind": "forward and backward"}, update("compiled")], "not been measured"),
        ([EAGER, update("compiled"), EAGER | {"pairs": 64}, update("compiled", 700.0) | {"pairs": 64}], "no faster"),
        ([], "not been measured"),
    ],
)
def test_a_proof_needs_equal_losses_and_more_speed(lines: list[Line], reason: str | None) -> None:
    found = why_not_compiled(lines)
    assert found is None if reason is None else reason in str(found)


def test_auto_compiles_only_by_a_proof_that_is_kept() -> None:
    assert bool(compilation.PROOF) == (why_not_compiled(read_records(RESULTS / "step.jsonl")) is None)
    assert compilation.PROOF in ("", "step.jsonl")
