"""Operations of a cell's step, and the updates that cost as much as all four losses' do."""

from __future__ import annotations

from typing import cast

import torch

from benchmarks.claim.corpora import ROOT
from benchmarks.claim.grid import OBJECTIVES
from mvlm.batch import Batch
from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import load_tokenizer, train_tokenizer
from mvlm.data.shards.mixture import training_mixture
from mvlm.estimate.count import synthetic_batch
from mvlm.estimate.encoders import build_without_weights
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.training.logging.mfu import FlopsOfBatches


def flops_a_pair(toml: str, overrides: list[str], objective: str) -> float:
    """Of forward and backward pass, of a pair of the first batch.

    Args:
        overrides: of `toml`, with data.train, without the objective's own.
    """
    config = load_config(toml, [*overrides, *OBJECTIVES[objective]])
    model, batch = _first_batch(config)
    return FlopsOfBatches(model)(batch) / len(batch)


def equal_compute(toml: str, overrides: list[str], objective: str, reference: str) -> int:
    """Updates with `objective` that cost as much as the TOML's `train.steps` with `reference`."""
    steps = load_config(toml, overrides).train.steps
    costs = [flops_a_pair(toml, overrides, name) for name in (reference, objective)]
    return round(steps * costs[0] / costs[1])


LENGTHS = (4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 19, 20, 21, 23, 24)
"""Tokens of captions, 14 in the mean, special ones included."""
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
