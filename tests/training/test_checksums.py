"""Bits that change in memory between two updates are found wherever they are, rolled back, and never saved."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.errors import ExitCode, MemoryCorrupted
from mvlm.runtime import dist
from mvlm.training.checkpoint.share import ShareWriter
from mvlm.training.engine import Engine
from mvlm.training.zero import checksums
from mvlm.training.zero.checksums import Checksums, sum_bits
from tests.conftest import TINY, mvlm_command, run_command
from tests.ranks import run_ranks
from tests.training.conftest import TOML, TrainHere, losses_by_step
from tests.training.parity_worker import built, configuration, engine_of

ON = ("train.steps=8", "train.checksums=true", "train.ema=0.9", "train.freeze=['text']", "checkpoint.every=3")
BF16 = {"enabled": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "fp32 stage 0": {"zero_optimization": {"stage": 0}},
    "bf16 stage 1": {"zero_optimization": {"stage": 1}, "bf16": BF16},
    "fp32 stage 3": {"zero_optimization": {"stage": 3}},
    "bf16 stage 0": {"zero_optimization": {"stage": 0}, "bf16": BF16},
    "fp32 stage 2": {"zero_optimization": {"stage": 2}},
    "bf16 stage 3": {"zero_optimization": {"stage": 3}, "bf16": BF16},
}
QUICK = ("bf16 stage 1",)


@pytest.mark.parametrize("together", [1 << 17, 8])
def test_any_flipped_bit_changes_a_sum_and_two_do(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checksums.TOGETHER, "cpu", together)
    monkeypatch.setattr(checksums, "ROW", 2)
    base = torch.randn(7)
    tensors = [torch.randn(3, 2), base[1:], torch.randn(5).bfloat16(), torch.randn(19), torch.randn(11).bfloat16()]
    found = int(sum_bits(tensors))
    places = [(t, n, bit) for t in tensors for n in range(t.numel()) for bit in range(8 * t.element_size())]
    for place in places:
        flip(*place)
        assert int(sum_bits(tensors)) != found
        flip(*place)
    for one, other in zip(places, places[8 * 32 :], strict=False):  # the same bit of an element two rows or more away
        flip(*one), flip(*other)
        assert int(sum_bits(tensors)) != found
        flip(*one), flip(*other)
    assert int(sum_bits(tensors)) == found


def test_a_sum_follows_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python's integers: a tensor that fills two rows, two short ones end to end, and one of another dtype."""
    monkeypatch.setattr(checksums, "ROW", 8)
    monkeypatch.setitem(checksums.TOGETHER, "cpu", 16)
    long, short, other, last = torch.randn(32, 1), torch.randn(9), torch.randn(6).bfloat16(), torch.randn(5)
    runs = [bytes_of(long), bytes_of(short) + bytes_of(last), bytes_of(other)]
    rows = [0]
    for run in runs:
        run += bytes(-len(run) % 64)
        rows += [sum(struct.unpack("<8q", run[start : start + 64])) for start in range(0, len(run), 64)]
    total = sum(splitmix(row + n * 0x9E3779B97F4A7C15) for n, row in enumerate(rows))
    assert int(sum_bits([long, short, other, last])) == signed(total)


def bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


def signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def splitmix(number: int) -> int:
    """With the shifts of signed integers, as torch has them."""
    for shift, odd in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = signed(number)
        number = (number ^ (number >> shift)) * odd
    number = signed(number)
    return number ^ (number >> 31)


def flip(tensor: Tensor, place: int, bit: int) -> None:
    width = tensor.element_size()
    integers = tensor.detach().view({4: torch.int32, 2: torch.int16}[width]).view(-1)
    integers[place] ^= torch.tensor(1 << bit if bit < 8 * width - 1 else -(1 << bit), dtype=integers.dtype)


def kinds(engine: Engine) -> dict[str, Tensor]:
    """One tensor of each kind that a rank has in memory, of a trained parameter and of a frozen one."""
    owner = max(engine._state._owners(), key=torch.numel)
    state = {
        key: kept for key, kept in engine._state._base.state[owner].items() if torch.is_tensor(kept) and kept.dim()
    }
    parameters: list[Any] = [parameter for _, parameter in engine.parameters()]
    trained = next(p for p in parameters if p.requires_grad)
    frozen = next(p for p in parameters if not p.requires_grad)
    computing = {
        "trained": getattr(trained, "ds_tensor", trained).data,
        "frozen": getattr(frozen, "ds_tensor", frozen).data,
    }
    return {"master": owner.detach(), **state, **computing}


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=() if name in QUICK else pytest.mark.campaign) for name in LAYOUTS]
)
def test_a_flip_in_each_kind_of_tensor_is_rolled_back_without_a_trace(
    layout: str, tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind after another, a bit flips each time the fifth step has been made."""
    step, flipped, seen = Engine.step, [], []

    def stepping(self: Engine, micro_batches: Any, factor: float, before: int, metrics: Any = None) -> Any:
        losses = step(self, micro_batches, factor, before, metrics)
        seen.append((before + 1, float(self.corrupted)))
        if before + 1 == 5 and (left := [kind for kind in kinds(self) if kind not in flipped]):
            flipped.append(left[0])
            flip(kinds(self)[left[0]], 1, 3)
        return losses

    assert train_here(tmp_path / "plain", *ON, deepspeed=LAYOUTS[layout]) == 0
    monkeypatch.setattr("mvlm.training.health.anomaly.CORRUPTIONS", 10)
    monkeypatch.setattr(Engine, "step", stepping)
    assert train_here(tmp_path / "run", *ON, deepspeed=LAYOUTS[layout]) == 0
    assert set(flipped) == {"master", "exp_avg", "exp_avg_sq", "ema", "trained", "frozen"}
    assert [number for number, corrupted in seen if corrupted] == [6] * len(flipped)
    assert losses_by_step(tmp_path / "run") == losses_by_step(tmp_path / "plain")
    assert not (tmp_path / "run" / SKIPPED).exists()
    ends = [(find_checkpoint(tmp_path / name) / "index.json").read_text() for name in ("run", "plain")]
    first, second = ({each["file"]: each["sha256"] for each in json.loads(end)["files"]} for end in ends)
    same = [name for name in first if name.startswith(("weights", "ema", "exp", "optim", "moments"))]
    assert same and all(first[name] == second[name] for name in same)


def flip_after(number: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a bit flip each time this update has been made."""
    step = Engine.step

    def stepping(self: Engine, micro_batches: Any, factor: float, before: int, metrics: Any = None) -> Any:
        losses = step(self, micro_batches, factor, before, metrics)
        if before + 1 == number:
            flip(kinds(self)[kind], 2, 30)
        return losses

    monkeypatch.setattr(Engine, "step", stepping)


def test_changed_memory_is_not_saved(tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes after the update at which a checkpoint is due, while the previous one is still being written."""
    write = ShareWriter.run

    def write_late(self: ShareWriter) -> None:
        time.sleep(1.0)
        write(self)

    monkeypatch.setattr(ShareWriter, "run", write_late)
    flip_after(6, "exp_avg", monkeypatch)
    with pytest.raises(MemoryCorrupted, match="since the update of step 6: they are not saved") as error:
        train_here(tmp_path / "run", *ON)
    assert error.value.exit_code == ExitCode.REQUEUE
    assert find_checkpoint(tmp_path / "run").name == "step_00000003"


def test_memory_that_changes_between_resuming_and_the_first_update_is_rolled_back(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, made = Engine.step, []

    def flipped_first(self: Engine, micro_batches: Any, factor: float, before: int, metrics: Any = None) -> Any:
        if not made:
            flip(kinds(self)["exp_avg"], 2, 30)
        made.append(before + 1)
        return step(self, micro_batches, factor, before, metrics)

    with monkeypatch.context() as patch:
        flip_after(6, "exp_avg", patch)
        with pytest.raises(MemoryCorrupted):
            train_here(tmp_path / "run", *ON)
    undisturbed = losses_by_step(tmp_path / "run")
    monkeypatch.setattr(Engine, "step", flipped_first)
    assert train_here(tmp_path / "run", *ON) == 0
    assert made[-5:] == [4, 5, 6, 7, 8] and made.count(4) == 2
    assert "before step 4 weights or moments had changed in memory" in capsys.readouterr().err
    assert {4, 5} <= undisturbed.keys()
    assert losses_by_step(tmp_path / "run").items() >= undisturbed.items()


@pytest.mark.campaign
def test_a_run_ends_if_memory_fails_again_and_again(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_after(4, "master", monkeypatch)
    with pytest.raises(MemoryCorrupted, match=r"At step 5 weights or moments .* the 4th time"):
        train_here(tmp_path / "run", *ON)
    assert capsys.readouterr().err.count("before step 5 weights or moments had changed in memory") == 4


@pytest.mark.campaign
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_found_if_nothing_has_changed(layout: str, scenes: Path, tmp_path: Path) -> None:
    """With two ranks, accumulation, dropout, an EMA that replaces the weights in evaluations, and checkpoints."""
    (tmp_path / "ds.json").write_text(json.dumps(LAYOUTS[layout]))
    own = ["train.steps=6", "train.checksums=true", "train.ema=0.9", "train.micro_batch=4", "model.dropout=0.1"]
    own += ["eval.every=2", "eval.limit=32", "checkpoint.every=2", f"run.dir={tmp_path / 'run'}"]
    data = [f"data.train={scenes / 'train'}", f"data.eval={scenes / 'eval'}"]
    done = run_command(
        mvlm_command("train", TOML, "--deepspeed_config", str(tmp_path / "ds.json"), *TINY, *data, *own, ranks=2)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed in memory" not in done.stdout + done.stderr
    assert find_checkpoint(tmp_path / "run").name == "step_00000006"


def exchange_negative_zeros(scenes: Path) -> None:
    """What each rank runs: all weights, and so their averages, are -0."""
    dist.init()
    config = configuration(str(scenes), 8, ["train.checksums=true", "train.ema=0.9"])
    model, _ = built(config, dist.rank(), dist.world())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-0.0)
    engine = engine_of(model, config, LAYOUTS["bf16 stage 1"], dist.world())
    assert engine.is_intact()
    with engine.ema_weights():
        pass
    assert engine.is_intact()
    dist.close()


def test_exchanging_weights_and_averages_keeps_the_sign_of_zeros(scenes: Path) -> None:
    done = run_ranks(exchange_negative_zeros, scenes, ranks=2)
    assert done.returncode == 0, done.stderr


def compare_copies(folder: Path, unlike: bool) -> None:
    """What each rank runs."""
    dist.init()
    rank = dist.rank()
    own, copy = torch.full((3,), float(rank)), torch.arange(5.0)
    if unlike and rank == 1:
        flip(copy, 4, 0)
    sums = Checksums([lambda: [own]], [lambda: [copy]])
    sums.keep()
    (folder / f"{rank}.json").write_text(json.dumps(float(sums.changed())))
    dist.close()


@pytest.mark.parametrize("unlike", [False, True])
def test_ranks_compare_their_copies(unlike: bool, tmp_path: Path) -> None:
    """Each rank's own tensors may differ."""
    done = run_ranks(compare_copies, tmp_path, unlike, ranks=2)
    assert done.returncode == 0, done.stderr
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [float(unlike)] * 2
