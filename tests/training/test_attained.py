"""A minute of pretraining on a world with known answers, measured on held-out scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.downstream.finetune import WORDS
from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from tests.conftest import mvlm_command, run_command

# The oracle and the parity with the plain loop show sooner, and more precisely, what would keep a model from learning.
pytestmark = pytest.mark.campaign

SMALLER = [
    "model.vision_args={patch_size=16, embed_dim=64, depth=2, num_heads=4}",
    "model.text_args={hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, "
    "max_position_embeddings=64, initializer_range=0.08}",
    "model.contrastive_width=64",
    "optim.warmup_steps=50",
    "train.steps=300",
    "train.global_batch=32",
    "data.eval=[]",
]

Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def measure(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """`mvlm evaluate TASK` on "eval", or on "novel", whose pairs of colour and shape were never seen."""
    folder = tmp_path_factory.mktemp("attained")
    words = ["--count", "4000", "--seed", "1", "--holdout-pairs", "3", "--split", "train=0.9,eval=0.1"]
    assert data_tools(["synth", "--task", "caption", *words, "--out", str(folder / "world")]) == 0
    data = [f"data.train={folder}/world/train", f"run.dir={folder}/run"]
    config = ["examples/scenes.toml", "--deepspeed_config", "ds_configs/cpu.json"]
    done = run_command(mvlm_command("train", *config, *data, *SMALLER))
    assert done.returncode == 0, done.stderr

    def evaluate(task: str, part: str, *options: str) -> dict[str, Any]:
        file = folder / f"{task}_{part}.json"
        given = ["--checkpoint", str(folder / "run"), "--data", str(folder / "world" / part), "--json", str(file)]
        assert mvlm(["evaluate", task, *given, *options]) == 0
        return json.loads(file.read_text())

    return evaluate


@pytest.mark.parametrize(("part", "least"), [("eval", 0.85), ("novel", 0.7)])
def test_masked_words_are_read_off_the_image(measure: Measure, part: str, least: float) -> None:
    accuracy = measure("reconstruction", part, "--words", WORDS)["word_accuracy"]
    assert accuracy["right"] > least
    for other in ("none", "wrong"):  # known is only that it is one of six colours or of four shapes
        assert accuracy[other] < 0.4


def test_held_out_scenes_are_found_by_their_captions(measure: Measure) -> None:
    found = measure("retrieval", "eval")
    for direction in ("image_to_text", "text_to_image"):
        assert found[direction]["reranked"]["r1"] > 0.5, found  # of 297 scenes
