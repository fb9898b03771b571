"""Operations of a cell's step, in closed form, and the updates that cost as much as all four losses' do."""

from __future__ import annotations

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
from mvlm.data.shards.corpus import training_mixture
from mvlm.estimate.flops import Work, step_flops
from mvlm.model.dimensions import Dimensions, Tower, dimensions
from mvlm.model.masking import exact_count
from mvlm.pretrained.encoders import build_model


def flops_a_pair(toml: str, overrides: list[str], objective: str) -> float:
    """Of forward and backward pass, of a pair of the first batch.

    Args:
        overrides: of `toml`, with data.train, without the objective's own.
    """
    config = load_config(toml, [*overrides, *OBJECTIVES[objective]])
    sizes, batch = _first_batch(config)
    return sum(step_flops(sizes, Work.of(batch, config.train.global_batch), config.objectives).values())


def equal_compute(toml: str, overrides: list[str], objective: str, reference: str) -> int:
    """Updates with `objective` that cost as much as the TOML's `train.steps` with `reference`."""
    steps = load_config(toml, overrides).train.steps
    costs = [flops_a_pair(toml, overrides, name) for name in (reference, objective)]
    return round(steps * costs[0] / costs[1])


BASE = Dimensions(  # mvlm/configs/base.toml: ViT-B/16 at 224 pixels and RoBERTa-base
    vision=Tower(width=768, depth=12, heads=12, tokens_extra=1, matrices=12 * 12 * 768**2),
    text=Tower(width=768, depth=12, heads=12, tokens_extra=0, matrices=12 * 12 * 768**2),
    patches=196,
    patch_values=768,
    cross_depth=3,
    decoder_depth=3,
    cross_heads=12,
    cross_ratio=4,
    vocabulary=50265,
    contrastive_width=256,
)
TOKENS = 14.0  # of a caption in the mean, special ones included
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
        objectives = load_config(ROOT / "mvlm/configs/base.toml", overrides).objectives
        work = Work(
            length=24,
            tokens=TOKENS,
            squared_tokens=1.15 * TOKENS**2,
            hidden_tokens=max(1, round(objectives.text_mask_ratio * (TOKENS - 2))),
            hidden_patches=4 * exact_count(objectives.image_mask_ratio, 49, objectives.image_mask_rounding),
            restored_places=8,
            pool=512,
        )
        flops = sum(step_flops(BASE, work, objectives).values())
        hours = [f"{pairs * flops / (tflops * 1e12 * mfu) / 3600:.0f}" for pairs in PAPER.values()]
        lines.append(f"| `{name}` | {flops / 1e9:.0f} | {' | '.join(hours)} |")
    return "\n".join(lines)


def _first_batch(config: Config) -> tuple[Dimensions, Batch]:
    """The model's sizes, and a batch as training sees it."""
    mixture, data = training_mixture(config.data), config.data
    if data.tokenizer == "auto":
        texts = (caption for row in range(len(mixture)) for caption in mixture.row(row).captions)
        tokenizer = train_tokenizer(texts, data.vocabulary)
    else:
        tokenizer = load_tokenizer(data.tokenizer or config.model.text)
    with torch.device("meta"):
        model = build_model(config, tokenizer)
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
        return dimensions(model), next(loader)[0]
    finally:
        loader.close()
