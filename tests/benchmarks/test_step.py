"""The benchmark of the training step: every variant computes the same step, it resumes, and it counts correctly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.step import goals, ladder, table
from benchmarks.step.__main__ import README, main
from benchmarks.step.albef_like import AlbefLike
from benchmarks.step.medians import Result, results
from benchmarks.step.memory import LiveMemory, measure
from benchmarks.step.sizes import SIZES, build, make_batch
from benchmarks.step.variants import LADDER, every_word, padded, plain_attention
from mvlm.kernels.ops import OPS
from mvlm.model.flops import count_flops

TINY = SIZES["tiny"]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing a rung chooses kernels for its whole process, which here other tests share."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
    for op in OPS.values():
        monkeypatch.setattr(op, "choice", op.choice)


def loss_and_gradients(rung: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    prepared = LADDER[rung].prepare(TINY, torch.device("cpu"), torch.float32)
    loss = prepared.loss()
    loss.backward()
    return loss, {name: p.grad for name, p in prepared.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rung", ["naive", "sdpa", "packed", "masked_heads"])
def test_every_rung_has_the_same_loss_and_gradients(rung: str) -> None:
    expected, found = loss_and_gradients("pruned"), loss_and_gradients(rung)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-6)


def test_a_padded_text_gives_the_same_losses() -> None:
    model = build(TINY)
    batch = make_batch(TINY, model.grid)
    longer = padded(batch, 40, model.text.settings.pad_token_id)
    assert longer.text_BL.shape[1] == 40 > batch.text_BL.shape[1]
    model.text.packable = False
    torch.testing.assert_close(model(longer), model(batch), rtol=1e-5, atol=1e-6)


def test_predicting_every_position_gives_the_same_loss_at_a_higher_cost() -> None:
    model = build(TINY)
    batch = make_batch(TINY, model.grid)
    everywhere = dataclasses.replace(batch, masked=every_word(batch))
    torch.testing.assert_close(model(everywhere), model(batch), rtol=1e-5, atol=1e-6)
    assert count_flops(lambda: model(everywhere)) > 1.01 * count_flops(lambda: model(batch))


def test_a_step_like_albefs_trains_everything_it_computes() -> None:
    maskvlm = build(TINY)
    model = AlbefLike(maskvlm)
    sum(model(make_batch(TINY, maskvlm.grid)).values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == ["layers.vision.vit.patch_embed.mask_token"]


def test_plain_attention_equals_torchs_and_counts_as_many_operations() -> None:
    query, key, value = (torch.randn(2, 3, length, 16, requires_grad=True) for length in (7, 9, 9))
    mask = torch.rand(2, 1, 1, 9) < 0.7
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(plain_attention(query, key, value, attn_mask=mask), expected)
    counts = [
        count_flops(lambda attend=attend: attend(query, key, value, attn_mask=mask).sum().backward())
        for attend in (F.scaled_dot_product_attention, plain_attention)
    ]
    assert counts == [3 * 4 * 2 * 3 * 7 * 9 * 16] * 2


@pytest.mark.campaign
def test_an_interrupted_campaign_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--variants", "pruned", "--precision", "fp32", "--rounds", "1", "--steps", "1"]
    assert main([*words, "--results", str(tmp_path)]) == 0
    path = tmp_path / "tiny-cpu.jsonl"
    counted, trial = path.read_text().splitlines()
    assert json.loads(counted)["flops"] > 1e6
    assert json.loads(trial)["seconds"][0] > 0
    assert json.loads(trial)["peak_bytes"] > 1e6
    assert "exact pruning" in capsys.readouterr().out
    path.write_text(counted + "\n" + trial[:40])
    assert main([*words, "--results", str(tmp_path)]) == 0
    again = path.read_text().splitlines()
    assert again[0] == counted
    assert [json.loads(line)["round"] for line in again] == ["count", 0]
    assert path.with_suffix(".png").stat().st_size > 1000


def test_a_failing_trial_is_recorded(tmp_path: Path) -> None:
    ladder.run(tmp_path / "x.jsonl", "tiny", ["albef"], [], 0, 1, tmp_path)
    (line,) = ladder.read(tmp_path / "x.jsonl")
    assert "No module named 'models'" in line["error"]
    assert "`albef` in fp32 failed" in table.markdown([line])


def line(variant: str, **found: Any) -> dict[str, Any]:
    machine = {"device": "a CPU", "load": 0.5, "torch": "2.13", "size": "tiny", "precision": "fp32", "round": 0}
    return machine | {"variant": variant} | found


def test_the_table_shows_medians_of_cpu_seconds() -> None:
    trial = {"peak_bytes": 2e9, "product_flops": 100e9}
    lines = [
        line("naive", flops=40e9),
        line("pruned", flops=20e9),
        line("naive", cpu_seconds=[4.0, 4.0], seconds=[9.0, 9.0], **trial),
        line("pruned", cpu_seconds=[1.0, 2.0], seconds=[9.0, 9.0], **trial),
        line("pruned", cpu_seconds=[1.0], seconds=[9.0], **trial),
    ]
    naive, pruned = results(lines)
    assert (naive.pairs_per_s, pruned.pairs_per_s) == (1.0, 4.0)  # a step has 4 pairs
    assert naive.peak == pytest.approx(0.4)  # 1 pair a second of 40 of the 100 GFLOP/s
    assert pruned.peak == pytest.approx((3 + 4) / 2 * 20e9 / 100e9)
    text = table.markdown(lines)
    assert "| + exact pruning (`MaskVLM.forward`) | 20.0 | 4.00 |" in text
    assert table.put("a <!-- table of x -->old<!-- end --> b", "x", "new") == (
        "a <!-- table of x -->\nnew\n<!-- end --> b"
    )


def test_a_missed_goal_is_marked() -> None:
    def result(variant: str, speed: float, memory: float) -> Result:
        return Result(variant, "fp32", 1e9, speed, 0.0, peak=0.72, memory=memory, steps=1)

    found = [result("naive", 1.0, 9.0), result("sdpa", 2.0, 10.0), result("without_compilation", 2.8, 8.0)]
    text = goals.markdown(found)
    assert "| pairs/s, × the faster plain step's | 1.40 (≥ 1.45: **not reached**) |  |" in text
    assert "| 0.72 (≥ 0.7: reached) |" in text
    assert "| 0.80 (≤ 0.85: reached) |" in text
    assert "ALBEF" not in text  # not measured
    assert goals.markdown(found[:1]) == ""


@pytest.mark.parametrize("path", sorted(ladder.RESULTS.rglob("*-?pu.jsonl")), ids=ladder.name_of)
def test_the_readme_shows_the_measurements(path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert table.put(text, ladder.name_of(path), table.markdown(ladder.read(path))) == text


def test_live_memory_counts_living_tensors() -> None:
    with LiveMemory() as memory:
        a = torch.ones(1000)
        b = a.view(10, 100) + 1
        del a
        c = b.relu_()
        assert (memory.live, memory.peak) == (4000, 8000)
        del b, c
        assert memory.live == 0


@pytest.mark.campaign
def test_memory_by_kind_adds_up() -> None:
    found = measure(TINY, torch.bfloat16, 4, 0.0)
    model = build(TINY)
    elements = sum(p.numel() for p in model.parameters())
    assert (found["weights"], found["optimizer"]) == (2 * elements, 12 * elements)
    assert sum(found["activations_by_part"].values()) == found["activations"]
    assert found["activations_by_part"]["cross_text"] > found["activations_by_part"]["match_head"] > 0
