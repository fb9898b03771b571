"""Every kind of engine: it trains alike, tells what went wrong, and can be set back while it lives, bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.training.gradient_norms import PARTS
from mvlm.training.zero.stages import ZeroStage0State
from tests.ranks import run_ranks
from tests.training.conftest import is_compiled
from tests.training.engine_worker import try_cases

BF16 = {"enabled": True}
FP16 = {"enabled": True, "initial_scale_power": 18, "hysteresis": 1, "loss_scale_window": 2}
"""The gradients overflow until the scale is about 2 ** 15."""


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"stage": stage, **settings}


ON_CPU = {"offload_optimizer": {"device": "cpu"}}
PLAIN = "fp32 stage 0"  # which the others are held against
COMMON: dict[str, dict[str, Any]] = {
    PLAIN: {"zero_optimization": zero(0)},
    "bf16 stage 1": {"bf16": BF16, "zero_optimization": zero(1, overlap_comm=True)},
    "fp16 stage 2": {"fp16": FP16, "zero_optimization": zero(2)},
}
"""Each of DeepSpeed's kinds of state once; the rest is left to campaigns."""
CASES = COMMON | {
    "fp32 stage 3 offload": {"zero_optimization": zero(3, **ON_CPU, offload_param={"device": "cpu"})},
    "bf16 stage 3": {"bf16": BF16, "zero_optimization": zero(3)},
    "bf16 stage 1, fp32 sums": {
        "bf16": BF16,
        "zero_optimization": zero(1),
        "data_types": {"grad_accum_dtype": "fp32"},  # another optimiser of DeepSpeed's
    },
    "fp32 stage 1": {"zero_optimization": zero(1)},
    "fp32 stage 3": {"zero_optimization": zero(3)},
    "fp32 hpz": {"zero_optimization": zero(3, zero_hpz_partition_size=2)},
    "fp16 stage 3": {"fp16": FP16, "zero_optimization": zero(3)},
}
LOSSES = ("image", "text", "itc", "itm")
ROUNDING = {"fp32": (2e-4, 2e-4), "bf16": (6e-3, 3e-2), "fp16": (2e-3, 3e-2)}
"""By precision: of losses and of the gradient's norm, relative to fp32 at stage 0."""


def results_of(
    cases: dict[str, Any], ranks: int, scenes: Path, folder: Path, *overrides: str, **environment: str
) -> dict[str, dict[str, Any]]:
    file = folder / "results.json"
    done = run_ranks(try_cases, str(scenes), cases, file, list(overrides), ranks=ranks, timeout=900, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


def each(*precisions: str) -> pytest.MarkDecorator:
    """Over the cases of these precisions."""
    cases = [
        pytest.param(case, marks=() if case in COMMON else pytest.mark.campaign)
        for case in CASES
        if case.startswith(precisions)
    ]
    return pytest.mark.parametrize("case", cases)


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Of the cases that are asked for, and of the plain one."""
    calls = [item.callspec for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {PLAIN, *(call.params.get("case", PLAIN) for call in calls)}
    more = ["train.recompute=0.5", "train.ema=0.9", "train.freeze=['text']"]
    folder = tmp_path_factory.mktemp("engines")
    # Where there is no compiler, torch's AdamW is used for offloaded state.
    environment = {} if is_compiled("cpu_adam") else {"CXX": "false", "TORCH_EXTENSIONS_DIR": str(folder)}
    cases = {case: CASES[case] for case in CASES if case in asked}
    return results_of(cases, 2, scenes, folder, *more, **environment)


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]], precision: str) -> None:
    losses, norm = ROUNDING[precision]
    for line, other in zip(found, expected, strict=True):
        for name in LOSSES:
            assert line[name] == pytest.approx(other[name], rel=losses), name
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=norm)
        for name in (f"grad_norms/{part}" for part in PARTS):  # of which the small ones round more
            assert line[name] == pytest.approx(other[name], rel=5 * norm), name


@each("fp32", "bf16", "fp16")
def test_a_live_engine_set_back_repeats_itself(results: dict[str, Any], case: str) -> None:
    """After more updates, a poisoned one and an evaluation: weights, moments, losses, norms, scale, in every bit."""
    found = results[case]
    assert found["kept"][0] == found["kept"][1]
    assert found["repeated"] == found["undisturbed"] and found["is_training"]
    assert found["end"][0] == found["end"][1]
    assert found["end"][0] != found["kept"][0]
    assert found["from_the_start"] == found["to_kept"]


@each("fp32", "bf16")
def test_all_train_alike(results: dict[str, Any], case: str) -> None:
    found, plain = results[case], results[PLAIN]
    close(found["to_kept"] + found["undisturbed"], plain["to_kept"] + plain["undisturbed"], case[:4])
    assert [line["updates"] for line in found["to_kept"] + found["undisturbed"]] == [1, 2, 3, 4, 5]


@each("fp32", "bf16", "fp16")
def test_any_goes_on_from_what_another_saved(results: dict[str, Any], case: str) -> None:
    found, plain = results[case], results[PLAIN]
    assert found["firsts"][0] == found["firsts"][1]
    if not any(line["overflowed"] for line in found["after_firsts"]):
        close(found["after_firsts"], plain["undisturbed"], case[:4])
    assert found["after_firsts"][0]["updates"] == (3 if found["after_firsts"][0]["overflowed"] else 4)


@each("fp32", "bf16", "fp16")
def test_each_group_has_its_own_rate_and_decay_after_all_that(results: dict[str, Any], case: str) -> None:
    rates = {name: (lr, decay) for name, lr, decay in results[case]["groups"]}
    assert rates == {
        "encoder_decay": (0.5 * 1e-3, 0.05),
        "encoder_no_decay": (0.5 * 1e-3, 0.0),
        "new_decay": (0.5 * 3e-3, 0.05),
        "new_no_decay": (0.5 * 3e-3, 0.0),
    }


@each("fp32", "bf16", "fp16")
def test_an_average_follows_the_weights_and_takes_their_place(results: dict[str, Any], case: str) -> None:
    """Against decay x average + (1 - decay) x weight in float64; once exchanged back, every bit is as before."""
    found = results[case]
    count, error, in_place = found["averages"]
    assert count == 4 and 0 < error < 1e-6 and in_place == error
    before, within, after = found["exchanged"]
    assert before == after != within


@each("fp32", "bf16", "fp16")
def test_frozen_weights_keep_every_bit(results: dict[str, Any], case: str) -> None:
    """In 16 bits too, where the model computes with rounded ones, and after all was written back."""
    assert len(results[case]["frozen"]) == 21 and all(results[case]["frozen"])


@each("fp32", "bf16", "fp16")
def test_a_gradient_that_is_not_finite_is_seen_in_the_norm(results: dict[str, Any], case: str) -> None:
    poisoned = results[case]["poisoned"]
    assert not math.isfinite(poisoned["grad_norm"])
    assert poisoned["overflowed"] == case.startswith("fp16")


@each("fp16")
def test_an_overflow_in_fp16_is_no_update_and_halves_the_scale(results: dict[str, Any], case: str) -> None:
    lines = results[case]["to_kept"] + results[case]["undisturbed"]
    overflows = [line["overflowed"] for line in lines]
    assert overflows[0] and not all(overflows)
    assert [line["updates"] for line in lines] == [overflows[: at + 1].count(False) for at in range(5)]
    scale, last, expected = 2.0 ** FP16["initial_scale_power"], 0, []
    for at, overflowed in enumerate(overflows):
        if overflowed:
            scale, last = scale / 2, at
        elif (good := at - last - 1) and not good % FP16["loss_scale_window"]:
            scale *= 2
        expected.append(scale)
    assert [line["loss_scale"]["cur_scale"] for line in lines] == expected
    assert [line["grad_norm"] == math.inf for line in lines] == overflows
    assert ["grad_norms/vision" in line for line in lines] == [not overflowed for overflowed in overflows]


def test_parameters_wait_on_a_disk(scenes: Path, tmp_path: Path) -> None:
    """A layer of 2.6 million weights, since DeepSpeed leaves what is small in memory."""
    if not (is_compiled("async_io") and is_compiled("cpu_adam")):
        pytest.skip("async_io and cpu_adam, which take minutes to compile, have not been compiled here")
    wide = "model.text_args={hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10240, "
    on_disk = {"device": "nvme", "nvme_path": str(tmp_path / "disk"), "buffer_size": 3_000_000}
    cases = {
        "cpu": {"bf16": BF16, "zero_optimization": zero(3, **ON_CPU, offload_param={"device": "cpu"})},
        "disk": {"bf16": BF16, "zero_optimization": zero(3, **ON_CPU, offload_param=on_disk)},
    }
    found = results_of(cases, 1, scenes, tmp_path, wide + "max_position_embeddings=64}")
    assert list((tmp_path / "disk").rglob("*.swp"))
    assert found["disk"]["end"] == found["cpu"]["end"]
    assert found["disk"]["repeated"] == found["disk"]["undisturbed"] == found["cpu"]["undisturbed"]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_an_optimizers_state_lies_on_a_disk(scenes: Path, tmp_path: Path, ranks: int) -> None:
    """Updates, averages, roll-backs and what another saved come to the same bits as in memory, part by part."""
    at = {"device": "nvme", "nvme_path": str(tmp_path / "disk")}
    on_disk = zero(3, offload_optimizer=at, offload_param={"device": "cpu"}, sub_group_size=10_000)
    cases = {
        "memory": {"bf16": BF16, "zero_optimization": on_disk | ON_CPU},
        "disk": {"bf16": BF16, "zero_optimization": on_disk},
    }
    torch_serves = {"CXX": "false", "TORCH_EXTENSIONS_DIR": str(tmp_path)}  # where DeepSpeed's is not compiled
    environment = {} if is_compiled("cpu_adam") else torch_serves
    found = results_of(cases, ranks, scenes, tmp_path, "train.ema=0.9", **environment)
    assert (tmp_path / "disk").is_dir() or list(tmp_path.rglob("mvlm-*"))
    for name in ("to_kept", "undisturbed", "repeated", "from_the_start", "after_firsts", "end", "exchanged"):
        assert found["disk"][name] == found["memory"][name], name


@pytest.mark.campaign
def test_deepspeeds_adamw_serves_offloaded_state(results: dict[str, Any]) -> None:
    if not is_compiled("cpu_adam"):
        pytest.skip("DeepSpeed's AdamW for CPUs, which takes minutes to compile, has not been compiled here")
    assert results["fp32 stage 3 offload"]["optimizer"] == "DeepSpeedCPUAdam"


def test_deepspeeds_adamw_goes_on_in_every_bit() -> None:
    """It multiplies up beta ** updates, and a new one would take the power."""
    if not is_compiled("cpu_adam"):
        pytest.skip("DeepSpeed's AdamW for CPUs, which takes minutes to compile, has not been compiled here")
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(1000, generator=generator), torch.randn(60, 1000, generator=generator)

    def adam() -> tuple[torch.nn.Parameter, torch.optim.Optimizer, ZeroStage0State]:
        parameter = torch.nn.Parameter(start.clone())
        optimizer = DeepSpeedCPUAdam([parameter], lr=1e-2, weight_decay=0.05)
        return parameter, optimizer, ZeroStage0State(optimizer, [parameter])

    def update(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            parameter.grad = gradients[step].clone()
            optimizer.step()

    undisturbed = adam()
    update(*undisturbed[:2], range(30))
    ((_, parts),) = undisturbed[2].parts([undisturbed[0]], True)
    kept = {key: part.elements.clone() for key, part in parts.items()}
    update(*undisturbed[:2], range(30, 60))
    expected = undisturbed[0].detach().clone()
    for parameter, optimizer, partitions in (adam(), undisturbed):
        partitions.prepare(30)
        partitions.write(parameter, kept)
        update(parameter, optimizer, range(30, 60))
        assert torch.equal(parameter.detach(), expected)
