"""Captured steps train as others do; on the CPU, operations that would be captured are recorded and replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.compile.launches import FILE, engine_of, negatives_as_one_call, passes
from benchmarks.compile.recorded import RecordedGraph, recording
from benchmarks.step.sizes import SIZES, build, make_batch
from mvlm.batch import Batch, MetricAccumulator
from mvlm.data.samples.captions import COARSE
from mvlm.runtime import dist
from mvlm.training.capture import capture, capture_passes
from mvlm.training.engine import Engine
from tests.training.saved_tensors import whole_tensors

SIZE = SIZES["tiny"]
STAGES = {"bf16 stage 1": (1, True), "fp32 stage 0": (0, False), "bf16 stage 0": (0, True), "fp32 stage 2": (2, False)}
COMMON = "bf16 stage 1"


def batches() -> list[Batch]:
    """With texts of 30 tokens and of 16 in turn."""
    grid = build(SIZE).grid
    longest = replace(SIZE, overrides=(*SIZE.overrides, "data.text_length=16"))
    return [make_batch((SIZE, longest)[step % 2], grid, 4, (30, 16)[step % 2], step * 4, COARSE) for step in range(4)]


def history(engine: Engine) -> list[dict[str, float]]:
    lines = []
    for step, batch in enumerate(batches()):
        tally = MetricAccumulator() if step in (1, 2) else None
        losses = engine.step([batch], 1.0, step, tally)
        line = {name: loss.item() for name, loss in losses.items()}
        lines.append(line | {f"{name} counted": float(n) for name, n in (tally.correct if tally else {}).items()})
    return lines


@pytest.fixture
def recorded() -> Iterator[list[RecordedGraph]]:
    with recording() as graphs:
        yield graphs


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == COMMON else pytest.mark.campaign) for case in STAGES]
)
def test_captured_steps_equal_plain_ones(one_rank: None, recorded: list[RecordedGraph], case: str) -> None:
    """In every bit, for each of DeepSpeed's ways to handle gradients."""
    plain = engine_of(*STAGES[case], captured=False, size=SIZE)
    expected = history(plain)
    assert not recorded
    captured = engine_of(*STAGES[case], captured=True, size=SIZE)
    assert history(captured) == expected
    assert len({tuple(line.values()) for line in expected}) == len(expected)
    # Two parts, two passes, two sizes; each is replayed at both steps of its size.
    assert [graph.replays for graph in recorded] == [2] * 8
    weights = zip(whole_tensors(plain), whole_tensors(captured), strict=True)
    assert all(torch.equal(one["weight"], other["weight"]) for (_, one), (_, other) in weights)


def test_a_captured_step_is_launched_in_few_calls() -> None:
    """At the full model's depth; some 2 ms on a host that takes 10 µs for each."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    with recording(), negatives_as_one_call():
        calls = passes(captured=True)
    kept = found["captured"]["forward and backward"]
    assert (calls.replays, len(calls.launching)) == (kept["graphs"], kept["launching"])
    assert all(one["graphs"] == 4 and one["launching"] <= 196 for one in found["captured"].values())


def test_a_model_that_is_not_captured_says_why(
    recorded: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(SIZE)
    capture(model)
    assert "captures nothing without a GPU" in capsys.readouterr().err
    monkeypatch.setattr(dist, "uses_cuda", lambda: True)
    model.text.model.encoder.layer[0].attention.self.dropout.p = 0.1
    capture(model)
    assert "captures nothing with dropout" in capsys.readouterr().err
    assert "encode" not in vars(model)


def test_a_step_that_cannot_be_captured_runs_as_it_is(
    recorded: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as one that reads a value on the host."""
    model, batch = build(SIZE), batches()[0]
    expected = {name: loss.item() for name, loss in model(batch).items()}
    plain = model.vision.normalize
    monkeypatch.setattr(model.vision, "normalize", lambda image: plain(image) * float(image.sum() > 0))
    capture_passes(model)
    for _ in range(2):
        assert {name: loss.item() for name, loss in model(batch).items()} == expected
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be captured" in line]
    assert len(said) == 1 and "not permitted when stream is capturing" in said[0]
