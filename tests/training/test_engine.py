"""Every kind of engine trains alike, reports what went wrong, and can be rolled back in place, bit for bit."""

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
from tests.training.engine_worker import describe_cpu_once, try_cases

BF16 = {"enabled": True}
FP16 = {"enabled": True, "initial_scale_power": 16, "hysteresis": 1, "loss_scale_window": 2}
"""The gradients overflow until the scale is about 2 ** 15."""


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"stage": stage, **settings}


ON_CPU = {"offload_optimizer": {"device": "cpu"}}
PLAIN = "fp32 stage 0"  # which the others are compared with
COMMON: dict[str, dict[str, Any]] = {
    PLAIN: {"zero_optimization": zero(0)},
    "bf16 stage 1": {"bf16": BF16, "zero_optimization": zero(1, overlap_comm=True)},
    "fp16 stage 2": {"fp16": FP16, "zero_optimization": zero(2)},
}
"""Each of DeepSpeed's kinds of state once; campaigns try the rest."""
CASES = COMMON | {
    "fp32 stage 3 offload": {"zero_optimization": zero(3, **ON_CPU, offload_param={"device": "cpu"})},
    "bf16 stage 3": {"bf16": BF16, "zero_optimization": zero(3)},
    "bf16 stage 1, fp32 sums": {
        "bf16": BF16,
        "zero_optimization": zero(1),
        "data_types": {"grad_accum_dtype": "fp32"},  # for which DeepSpeed has another optimiser
    },
    "fp32 stage 1": {"zero_optimization": zero(1)},
    "fp32 stage 3": {"zero_optimization": zero(3)},
    "fp32 hpz": {"zero_optimization": zero(3, zero_hpz_partition_size=2)},
    "fp16 stage 3": {"fp16": FP16, "zero_optimization": zero(3)},
}
LOSSES = ("image", "text", "itc", "itm")
ROUNDING = {"fp32": (2e-4, 2e-4), "bf16": (6e-3, 3e-2), "fp16": (2e-3, 3e-2)}
"""By precision, the tolerances of losses and of the gradient's norm, relative to fp32 at stage 0."""


def results_of(
    cases: dict[str, Any], ranks: int, scenes: Path, folder: Path, *overrides: str, **environment: str
) -> dict[str, dict[str, Any]]:
    file = folder / "results.json"
    done = run_ranks(try_cases, str(scenes), cases, file, list(overrides), ranks=ranks, timeout=900, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


def offload_environment(folder: Path) -> dict[str, str]:
    """Rather than compile DeepSpeed's AdamW for CPUs for minutes, let torch's serve offloaded state."""
    return {} if is_compiled("cpu_adam") else {"CXX": "false", "TORCH_EXTENSIONS_DIR": str(folder)}


def each_case(*precisions: str) -> pytest.MarkDecorator:
    """Parametrises a test over the cases of these precisions."""
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
    """The results of the selected tests' cases and of the plain one."""
    calls = [item.callspec for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {PLAIN, *(call.params.get("case", PLAIN) for call in calls)}
    more = ["train.recompute=0.5", "train.ema=0.9", "train.freeze=['text']"]
    folder = tmp_path_factory.mktemp("engines")
    cases = {case: CASES[case] for case in CASES if case in asked}
    return results_of(cases, 2, scenes, folder, *more, **offload_environment(folder))


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]], precision: str) -> None:
    losses, norm = ROUNDING[precision]
    for line, other in zip(found, expected, strict=True):
        for name in LOSSES:
            assert line[name] == pytest.approx(other[name], rel=losses), name
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=norm)
        for name in (f"grad_norms/{part}" for part in PARTS):  # small ones round more
            assert line[name] == pytest.approx(other[name], rel=5 * norm), name


@each_case("fp32", "bf16", "fp16")
def test_an_engine_rolled_back_in_place_repeats_its_steps(results: dict[str, Any], case: str) -> None:
    """After more updates, a poisoned one and an evaluation: weights, moments, losses, norms, scale, in every bit."""
    found = results[case]
    assert found["kept"][0] == found["kept"][1]
    assert found["repeated"] == found["undisturbed"] and found["is_training"]
    assert found["end"][0] == found["end"][1]
    assert found["end"][0] != found["kept"][0]
    assert found["from_the_start"] == found["to_kept"]


@each_case("fp32", "bf16")
def test_all_engines_train_alike(results: dict[str, Any], case: str) -> None:
    found, plain = results[case], results[PLAIN]
    close(found["to_kept"] + found["undisturbed"], plain["to_kept"] + plain["undisturbed"], case[:4])
    assert [line["updates"] for line in found["to_kept"] + found["undisturbed"]] == [1, 2, 3, 4]


@each_case("fp32", "bf16", "fp16")
def test_each_engine_resumes_from_the_state_of_another(results: dict[str, Any], case: str) -> None:
    found, plain = results[case], results[PLAIN]
    assert found["firsts"][0] == found["firsts"][1]
    if not any(line["overflowed"] for line in found["after_firsts"]):
        close(found["after_firsts"], plain["undisturbed"], case[:4])
    assert found["after_firsts"][0]["updates"] == (2 if found["after_firsts"][0]["overflowed"] else 3)


@each_case("fp32", "bf16", "fp16")
def test_groups_keep_their_own_rate_and_decay_through_rollbacks(results: dict[str, Any], case: str) -> None:
    rates = {name: (lr, decay) for name, lr, decay in results[case]["groups"]}
    assert rates == {
        "encoder_decay": (0.5 * 1e-3, 0.05),
        "encoder_no_decay": (0.5 * 1e-3, 0.0),
        "new_decay": (0.5 * 3e-3, 0.05),
        "new_no_decay": (0.5 * 3e-3, 0.0),
    }


@each_case("fp32", "bf16", "fp16")
def test_an_average_follows_the_weights_and_takes_their_place(results: dict[str, Any], case: str) -> None:
    """It is decay x average + (1 - decay) x weight in float64; once exchanged back, every bit is as before."""
    found = results[case]
    count, error, in_place = found["averages"]
    assert count == 4 and 0 < error < 1e-6 and in_place == error
    before, within, after = found["exchanged"]
    assert before == after != within


@each_case("fp32", "bf16", "fp16")
def test_frozen_weights_keep_every_bit(results: dict[str, Any], case: str) -> None:
    """In 16 bits too, where the model computes with rounded weights, and after rollbacks."""
    assert len(results[case]["frozen"]) == 21 and all(results[case]["frozen"])


@each_case("fp32", "bf16", "fp16")
def test_a_gradient_that_is_not_finite_shows_in_the_norm(results: dict[str, Any], case: str) -> None:
    poisoned = results[case]["poisoned"]
    assert not math.isfinite(poisoned["grad_norm"])
    assert poisoned["overflowed"] == case.startswith("fp16")


@each_case("fp16")
def test_an_overflow_in_fp16_is_no_update_and_halves_the_scale(results: dict[str, Any], case: str) -> None:
    lines = results[case]["to_kept"] + results[case]["undisturbed"]
    overflows = [line["overflowed"] for line in lines]
    assert overflows[0] and not all(overflows)
    assert [line["updates"] for line in lines] == [overflows[: at + 1].count(False) for at in range(4)]
    scale, last, expected = 2.0 ** FP16["initial_scale_power"], 0, []
    for at, overflowed in enumerate(overflows):
        if overflowed:
            scale, last = scale / 2, at
        elif (good := at - last - 1) and not good % FP16["loss_scale_window"]:
            scale *= 2
        expected.append(scale)
    assert [line["loss_scale"]["cur_scale"] for line in lines] == expected
    assert expected[-1] > min(expected)
    assert [line["grad_norm"] == math.inf for line in lines] == overflows
    assert ["grad_norms/vision" in line for line in lines] == [not overflowed for overflowed in overflows]


def test_parameters_offloaded_to_a_disk_train_as_in_memory(scenes: Path, tmp_path: Path) -> None:
    """A layer of 2.6 million weights, since DeepSpeed leaves small ones in memory."""
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
def test_optimizer_state_offloaded_to_a_disk_gives_the_bits_of_one_in_memory(
    scenes: Path, tmp_path: Path, ranks: int
) -> None:
    """In updates, averages, rollbacks and after resuming from another's state."""
    at = {"device": "nvme", "nvme_path": str(tmp_path / "disk")}
    on_disk = zero(3, offload_optimizer=at, offload_param={"device": "cpu"}, sub_group_size=10_000)
    cases = {
        "memory": {"bf16": BF16, "zero_optimization": on_disk | ON_CPU},
        "disk": {"bf16": BF16, "zero_optimization": on_disk},
    }
    found = results_of(cases, ranks, scenes, tmp_path, "train.ema=0.9", **offload_environment(tmp_path))
    assert (tmp_path / "disk").is_dir() or list(tmp_path.rglob("mvlm-*"))
    for name in ("to_kept", "undisturbed", "repeated", "from_the_start", "after_firsts", "end", "exchanged"):
        assert found["disk"][name] == found["memory"][name], name


@pytest.mark.campaign
def test_deepspeeds_adamw_serves_offloaded_state(results: dict[str, Any]) -> None:
    if not is_compiled("cpu_adam"):
        pytest.skip("DeepSpeed's AdamW for CPUs, which takes minutes to compile, has not been compiled here")
    assert results["fp32 stage 3 offload"]["optimizer"] == "DeepSpeedCPUAdam"


def test_deepspeeds_adamw_resumes_bit_for_bit() -> None:
    """It multiplies beta once an update, where a new one would compute beta ** updates."""
    if not is_compiled("cpu_adam"):
        pytest.skip("DeepSpeed's AdamW for CPUs, which takes minutes to compile, has not been compiled here")
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    describe_cpu_once()
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
