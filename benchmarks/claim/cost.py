"""Operations of a cell's step, and the number of updates that cost as much as those with all four losses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.claim.corpora import ROOT
from benchmarks.claim.grid import OBJECTIVES
from mvlm.batch import Batch
from mvlm.config.load import given_keys, load_config
from mvlm.config.schema import Config
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import load_tokenizer, train_tokenizer
from mvlm.data.shards.mixture import training_mixture
from mvlm.estimate.encoders import build_without_weights
from mvlm.estimate.synthetic import synthetic_batch
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.runtime import dist
from mvlm.training.fit.run import train
from mvlm.training.health.signals import StopRequests
from mvlm.training.logging.mfu import FlopsOfBatches
from mvlm.training.validation import Evaluate


def flops_a_pair(toml: str, overrides: Sequence[str]) -> float:
    """FLOPs of the forward and backward pass per pair of the first batch.

    Args:
        overrides: of `toml`, with data.train.
    """
    config = load_config(toml, overrides)
    model, batch = _first_batch(config)
    return FlopsOfBatches(model)(batch) / len(batch)


def equal_compute(toml: str, overrides: list[str], objective: str, reference: str) -> int:
    """Updates with `objective` that cost as much as the TOML's `train.steps` with `reference`."""
    steps = load_config(toml, overrides).train.steps
    costs = [flops_a_pair(toml, [*overrides, *OBJECTIVES[name]]) for name in (reference, objective)]
    return round(steps * costs[0] / costs[1])


STRETCH, STRETCHES = 10, 3
"""Steps in each measured stretch, and stretches; one more comes before, which also pays for captions of new lengths."""


def seconds_a_step(
    toml: Path, deepspeed: Path, words: Sequence[str], run: Path, stop: StopRequests | None = None
) -> list[float]:
    """Seconds per step in each stretch, between two calls of a stand-in for evaluation: of CPU time or, on a GPU, of
    wall-clock time.

    Args:
        words: overrides of `toml`.
        run: a folder that is emptied first.
        stop: this process's, if it goes on listening afterwards.
    """
    times: list[float] = []

    def seen(*_: Any) -> tuple[dict[str, float], None]:
        if dist.uses_cuda():
            torch.cuda.synchronize()
            times.append(time.perf_counter())
        else:
            times.append(time.process_time())
        return {}, None

    def clock(_: Config) -> Evaluate:
        return seen

    shutil.rmtree(run, ignore_errors=True)
    steps = STRETCH * (1 + STRETCHES)
    words = [*words, f"run.dir={run}", f"train.steps={steps}", f"eval.every={STRETCH}", "eval.select="]
    if code := train(load_config(toml, words), (str(deepspeed), str(toml)), given_keys(toml, words), clock, stop):
        raise SystemExit(code)  # asked to stop: the same command measures again
    return [(end - begin) / STRETCH for begin, end in pairwise(times)]


LENGTHS = (4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 19, 20, 21, 23, 24)
"""Tokens of captions, 14 on average, special ones included."""
PAPER = {"ablation": 61e6, "4 M": 257e6}
"""Pairs seen: 2.04 M for 30 epochs, 5.15 M for 50 (docs/method.md)."""


def gpu_hours(tflops: float, mfu: float) -> str:
    """A table of GPU-hours of the paper's runs, by objective.

    Args:
        tflops: a card's peak of dense bf16 products.
        mfu: the share of it that is reached.
    """
    lines = ["| objective | GFLOP a pair | " + " | ".join(PAPER) + " |", "| --- | --- |" + " --- |" * len(PAPER)]
    for name, overrides in OBJECTIVES.items():
        config = load_config(ROOT / "mvlm/configs/base.toml", overrides)
        model = build_without_weights(config.blueprint, config.data)
        flops = FlopsOfBatches(model)(synthetic_batch(model, config.data, LENGTHS)) / len(LENGTHS)
        hours = [f"{pairs * flops / (tflops * 1e12 * mfu) / 3600:.0f}" for pairs in PAPER.values()]
        lines.append(f"| `{name}` | {flops / 1e9:.0f} | {' | '.join(hours)} |")
    return "\n".join(lines)


def _first_batch(config: Config) -> tuple[MaskVLM, Batch]:
    """The model without its weights, and a batch as training sees it."""
    mixture, data = training_mixture(config.data), config.data
    if data.tokenizer == "auto":
        texts = (caption for row in range(len(mixture)) for caption in mixture.row(row).captions)
        tokenizer = train_tokenizer(texts, data.vocabulary)
    else:
        tokenizer = load_tokenizer(data.tokenizer or config.model.text)
    with torch.device("meta"):
        model = cast(MaskVLM, build_model(config.blueprint, tokenizer))
    batch = config.train.global_batch
    loader = Loader(
        PairDataset(mixture, tokenizer, data, config.objectives, config.model.image_size, config.run.seed, model.grid),
        make_sampler(mixture, config.run.seed, [order_of(data)]),
        global_batch=batch,
        micro_batch=batch,
        rank=0,
        world=1,
        workers=0,
    )
    try:
        return model, next(loader)[0]
    finally:
        loader.close()
