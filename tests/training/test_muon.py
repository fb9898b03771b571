"""Muon's updates are those of a float64 reference, however the matrices are split, at every ZeRO stage."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mvlm.checkpoint.tensors import open_tensors
from mvlm.config.load import load_config
from mvlm.config.schema import Optim
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.pretrained.encoders import build_model
from mvlm.training.optim import parameter_groups
from mvlm.training.zero.muon import MatrixPiece, Muon, scale
from tests.conftest import TINY, mvlm_command, run_command
from tests.training.conftest import TOML, TrainHere, losses_by_step

SHAPES = [(7, 5), (4, 12), (6, 6)]
OPTIM = Optim(name="muon", lr=0.01)


def polynomial(singular: Tensor) -> Tensor:
    """What five Newton-Schulz iterations make of singular values below 1."""
    for _ in range(5):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


def reference(weights: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    """The weights after these steps, computed in float64 by singular value decompositions."""
    found = []
    for number, weight in enumerate(weights):
        w, momentum = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
        for step in gradients:
            g = step[number].double()
            momentum = 0.95 * momentum + 0.05 * g
            ahead = 0.05 * g + 0.95 * momentum
            u, s, vh = torch.linalg.svd(ahead, full_matrices=False)
            update = u @ torch.diag(polynomial(s / (ahead.norm() + 1e-7))) @ vh
            w = w * (1 - 0.01 * 0.05) - 0.01 * 0.2 * max(weight.shape) ** 0.5 * update
        found.append(w)
    return found


@pytest.fixture
def case() -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return weights, [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(3)]


def make_steps(owners: list[Tensor], pieces: list[MatrixPiece], steps: list[list[Tensor]], add: Any = None) -> None:
    """Update the owners, all in one parameter group, by one step for each list of gradients."""
    muon = Muon([{"params": owners, "lr": 0.01, "weight_decay": 0.05, "muon": True}], OPTIM)
    muon.bind(pieces, is_split=False)
    muon._sum = add
    for gradients in steps:
        for owner, gradient in zip(owners, gradients, strict=True):
            owner.grad = gradient
        muon.step()


def test_the_updates_are_those_of_a_float64_reference(case: Any) -> None:
    weights, steps = case
    owners = [weight.clone().requires_grad_() for weight in weights]
    pieces = [MatrixPiece(owner, tuple(owner.shape), 0, 0, owner.numel()) for owner in owners]
    make_steps(owners, pieces, steps)
    for owner, wanted in zip(owners, reference(weights, steps), strict=True):
        torch.testing.assert_close(owner.detach().double(), wanted, rtol=0, atol=2e-6)
    assert scale((4, 12)) == pytest.approx(0.2 * 12**0.5)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_matrices_that_are_split_among_ranks_get_the_same_updates(case: Any, ranks: int) -> None:
    """Each rank has a part of all matrices laid end to end, as in stages 1 and 2, and of some matrices nothing."""
    weights, steps = case
    flat = torch.cat([weight.flatten() for weight in weights])
    size = -(-len(flat) // ranks)
    owners = [flat[r * size : (r + 1) * size].clone().requires_grad_() for r in range(ranks)]
    barrier, parts, this = threading.Barrier(ranks, timeout=60), [torch.empty(0)] * ranks, threading.local()

    def add(tensor: Tensor) -> Tensor:
        parts[this.rank] = tensor
        barrier.wait()
        total = torch.stack(parts).sum(0)
        barrier.wait()
        return total

    def make_steps_of_rank(rank: int) -> None:
        this.rank, begin, pieces = rank, 0, []
        for weight in weights:
            low, high = max(begin, rank * size), min(begin + weight.numel(), (rank + 1) * size)
            length = max(0, high - low)
            start, offset = (low - rank * size, low - begin) if length else (0, 0)
            pieces.append(MatrixPiece(owners[rank], tuple(weight.shape), start, offset, length))
            begin += weight.numel()
        own = [[torch.cat([g.flatten() for g in step])[rank * size : (rank + 1) * size]] for step in steps]
        make_steps([owners[rank]], pieces, own, add)

    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(make_steps_of_rank, range(ranks)))
    whole = torch.cat([owner.detach() for owner in owners]).double()
    wanted = torch.cat([weight.flatten() for weight in reference(weights, steps)])
    torch.testing.assert_close(whole, wanted, rtol=0, atol=2e-6)


WORDS = ("optim.name=muon", "train.ema=0.5", "optim.layer_decay=0.9", "checkpoint.every=3", "checkpoint.keep=3")


def test_a_run_is_the_same_at_stages_0_and_2_and_resumes_under_the_other(train_here: TrainHere, tmp_path: Path) -> None:
    """The run averages its weights, and its rates fall with depth. A checkpoint has one moment of each matrix."""
    stages = {0: {}, 2: {"zero_optimization": {"stage": 2}}}
    for stage, json in stages.items():
        assert train_here(tmp_path / f"whole{stage}", *WORDS, deepspeed=json) == 0
    whole = losses_by_step(tmp_path / "whole0")
    assert len(whole) == 6
    for step, losses in losses_by_step(tmp_path / "whole2").items():
        assert losses == pytest.approx(whole[step], rel=2e-5)
    with open_tensors(tmp_path / "whole2/checkpoints/step_00000006", "moments") as files:
        matrix = "vision.vit.blocks.0.attn.qkv.weight"
        assert f"exp_avg/{matrix}" in files and f"exp_avg_sq/{matrix}" not in files
        assert "exp_avg_sq/vision.vit.pos_embed" in files
    start = f"checkpoint.resume={tmp_path / 'whole0/checkpoints/step_00000003'}"
    assert train_here(tmp_path / "moved", *WORDS, start, deepspeed=stages[2]) == 0
    for step, losses in losses_by_step(tmp_path / "moved").items():
        assert losses == pytest.approx(whole[step], rel=2e-5)
    with pytest.raises(UserError, match=r"optim\.name was"):
        train_here(tmp_path / "moved", *WORDS, "optim.name=adamw", deepspeed=stages[2])
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(UserError, match="needs whole matrices on the device"):
        train_here(tmp_path / "offloaded", *WORDS, deepspeed=offload)
    assert not (tmp_path / "offloaded").exists(), "refused before a tokenizer is trained or a model built"


@pytest.mark.campaign
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_as_one_does(train_here: TrainHere, scenes: Path, tmp_path: Path, stage: int) -> None:
    assert train_here(tmp_path / "alone", "optim.name=muon") == 0
    json = tmp_path / "zero.json"
    json.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    given = [f"data.train={scenes}/train", f"run.dir={tmp_path / 'two'}", "train.steps=6", "optim.name=muon"]
    done = run_command(mvlm_command("train", TOML, "--deepspeed_config", str(json), *TINY, *given, ranks=2))
    assert done.returncode == 0, done.stdout + done.stderr
    alone = losses_by_step(tmp_path / "alone")
    for step, losses in losses_by_step(tmp_path / "two").items():
        assert losses == pytest.approx(alone[step], rel=1e-4)


def test_muon_updates_the_matrices_of_blocks_and_adamw_everything_else(tokenizer: Any) -> None:
    config = load_config(TOML, [*TINY, "optim.name=muon", "data.train=x"])
    model: Encoders = build_model(config.blueprint, tokenizer, 0)
    groups = parameter_groups(model, config.optim)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon = {names[id(p)] for group in groups if group.get("muon") for p in group["params"]}
    assert "vision.vit.blocks.0.mlp.fc1.weight" in muon and all(name.endswith("weight") for name in muon)
    assert not any(word in name for name in muon for word in ("embed", "head", "norm", "projection"))
    assert {len(p.shape) for group in groups if group.get("muon") for p in group["params"]} == {2}
    assert sum(len(group["params"]) for group in groups) == len(names)
