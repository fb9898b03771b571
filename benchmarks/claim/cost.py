"""Operations of a cell's step, in closed form, and the updates that cost as much as all four losses' do."""

from __future__ import annotations

import torch

from benchmarks.claim.grid import OBJECTIVES
from mvlm.batch import Batch
from mvlm.config import Config, load_config
from mvlm.data.index import training_mixture
from mvlm.data.loader import Loader
from mvlm.data.pairs import PairDataset
from mvlm.data.tokenizer import load_tokenizer, train_tokenizer
from mvlm.flops import Work, step_flops
from mvlm.model.dimensions import Dimensions, dimensions
from mvlm.model.maskvlm import MaskVLM


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


def _first_batch(config: Config) -> tuple[Dimensions, Batch]:
    """The model's sizes, and a batch as training sees it."""
    mixture, data = training_mixture(config.data), config.data
    if data.tokenizer == "auto":
        texts = (caption for row in range(len(mixture)) for caption in mixture.captions(row))
        tokenizer = train_tokenizer(texts, data.vocabulary)
    else:
        tokenizer = load_tokenizer(data.tokenizer or config.model.text)
    with torch.device("meta"):
        model = MaskVLM(config, tokenizer, load_weights=False)
    batch = config.train.global_batch
    loader: Loader[Batch, Batch] = Loader(
        PairDataset(mixture, tokenizer, config, model.grid),
        mixture.draws(config.run.seed, data),
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
