"""The engine and a run on CUDA, compared with the CPU; skipped without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, TINY, mvlm_command, run_command
from tests.training.conftest import losses_by_step
from tests.training.test_engine import BF16, close, results_of, zero

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

ON_CUDA = {"DS_ACCELERATOR": "cuda"}
"""Other tests keep their processes off the GPU."""
PLAIN = {"fp32 stage 0": {"zero_optimization": zero(0)}}
CASES = PLAIN | {f"bf16 stage {stage}": {"bf16": BF16, "zero_optimization": zero(stage)} for stage in range(4)}


@pytest.fixture(scope="module")
def results(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of every case on the GPU, and of the plain case on the CPU."""
    more = ["train.recompute=0.5", "train.ema=0.9"]
    here = results_of(PLAIN, 1, scenes, tmp_path_factory.mktemp("cpu"), *more)
    return results_of(CASES, 1, scenes, tmp_path_factory.mktemp("cuda"), *more, **ON_CUDA), here


@pytest.mark.parametrize("case", CASES)
def test_an_engine_trains_as_on_a_cpu_and_repeats_its_steps(
    results: tuple[dict[str, Any], dict[str, Any]], case: str
) -> None:
    found, plain = results[0][case], results[1]["fp32 stage 0"]
    close(found["to_kept"] + found["undisturbed"], plain["to_kept"] + plain["undisturbed"], case[:4])
    assert found["kept"][0] == found["kept"][1]
    assert found["firsts"][0] == found["firsts"][1]
    close(found["repeated"], found["undisturbed"], case[:4])


def test_a_deterministic_run_in_two_halves_has_the_losses_of_a_whole_one_in_every_bit(
    scenes: Path, tmp_path: Path
) -> None:
    deepspeed = tmp_path / "deepspeed.json"
    deepspeed.write_text(json.dumps({"bf16": BF16, "zero_optimization": zero(1)}))
    words = [*TINY, f"data.train={scenes}/train", "train.deterministic=true", "eval.every=0"]
    for folder, *stops in (("whole", 8), ("halves", 4, 8)):
        for steps in stops:
            own = [f"run.dir={tmp_path / folder}", f"train.steps={steps}", "optim.warmup_epochs=0", "optim.floor=1"]
            command = ["train", str(ROOT / "mvlm/configs/tiny.toml"), "--deepspeed_config", str(deepspeed)]
            done = run_command(mvlm_command(*command, *words, *own), **ON_CUDA)
            assert done.returncode == 0, done.stdout + done.stderr
    assert losses_by_step(tmp_path / "halves") == losses_by_step(tmp_path / "whole")
