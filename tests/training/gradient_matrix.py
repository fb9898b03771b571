"""The gradient of a global batch under options and layouts, against plain autograd through one graph of all of it.

Few combinations of `OPTIONS` are tried, generated so that any two (or more) values of different options meet in one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import Batch, Counts, Encoded, GlobalBatch, Losses, Negative, Negatives
from mvlm.config.schema import Config
from mvlm.model import maskvlm
from mvlm.model.losses.itm import ids_of
from mvlm.model.maskvlm import MaskVLM, denominators
from mvlm.model.randomness import seed_dropout
from mvlm.runtime import dist
from mvlm.training import contrast
from mvlm.training.match_groups import at_full_length
from tests.training.parity_worker import NOISE, WEIGHTS, Gradients, built, configuration, engine_of, steps_of, weighted
from tests.training.saved_tensors import whole_tensors

G, STEP = 32, 5
EXACT = 2e-5
"""The error that fp32 rounding may cause; another draw of dropout makes more than 0.1."""
VISION = "model.vision_args={patch_size=16, embed_dim=32, depth=2, num_heads=2, drop_path_rate=%s}"

OPTIONS: dict[str, tuple[Any, ...]] = {
    "dropout": (0.1, 0.0),
    "drop_path": (0.5, 0.0),
    "randaugment": ("[2,7]", "[0,0]"),
    "weights": ("[1,2]", "[1,1]"),
    "aligned": ("masked", "full"),
    "contrast": ("sigmoid", "softmax"),
    "exchange": ("ring", "blocks"),
    "accumulation": (4, 2, 1),
    "group": (32, 16, 4),
    "ranks": (2, 1),
    "stage": (3, 2, 1, 0),
}
"""The values of each option, the more demanding first."""

Row = dict[str, Any]


@cache
def covering_rows(values: int = 2) -> list[Row]:
    """Rows in which all combinations of so many values occur, chosen greedily: next comes the row with the most
    combinations that no earlier one has."""
    every = [dict(zip(OPTIONS, row, strict=True)) for row in itertools.product(*OPTIONS.values())]
    # Of equals the most demanding is taken, on one rank if possible, which needs no launch.
    rows, chosen = sorted(every, key=lambda row: row["ranks"]), []
    bits: dict[tuple[tuple[str, Any], ...], int] = {}  # one for each combination: sets would take twice as long
    met = [sum(1 << bits.setdefault(m, len(bits)) for m in itertools.combinations(row.items(), values)) for row in rows]
    missing = (1 << len(bits)) - 1
    while missing:
        best = max(range(len(rows)), key=lambda number: (met[number] & missing).bit_count())
        chosen.append(rows[best])
        missing &= ~met[best]
    return chosen


def name_of(row: Row) -> str:
    return " ".join(f"{option}={value}" for option, value in row.items())


def config_of(row: Row, shards: str, micro: int, *more: str) -> Config:
    options = [
        f'data.train=["{shards}/train", "{shards}/eval"]',
        f"data.weights={row['weights']}",
        f"data.randaugment={row['randaugment']}",
        f"model.dropout={row['dropout']}",
        VISION % row["drop_path"],
        f"objectives.alignment_inputs={row['aligned']}",
        f"objectives.contrastive={row['contrast']}",
        f"objectives.itc_exchange={row['exchange']}",
        f"objectives.itm_group={row['group']}",
    ]
    return configuration(
        shards, micro, [*WEIGHTS, *options, f"train.global_batch={G}", "train.recompute=0.5", "optim.clip=0", *more]
    )


def alike(batch: Batch) -> Batch:
    """Four of every twelve pairs have the same caption; if they are an ITM group, it has no negatives."""
    caption_id_B = torch.where(batch.position_B // 4 % 3 == 0, -1, batch.caption_id_B)
    return dataclasses.replace(batch, caption_id_B=caption_id_B)


def global_batch(config: Config, rank: int, world: int) -> tuple[MaskVLM, list[Batch]]:
    model, loader = built(config, rank, world)
    return model, [alike(batch) for batch in steps_of(loader, 1)[0]]


def engine_gradients(row: Row, shards: str) -> Gradients:
    """By name, from one update, after which AdamW's first moment is a tenth of the gradient."""
    world = dist.world()
    config = config_of(row, shards, G // (world * row["accumulation"]))
    model, micro_batches = global_batch(config, dist.rank(), world)
    assert len(micro_batches) == row["accumulation"]
    engine = engine_of(model, config, {"zero_optimization": {"stage": row["stage"]}}, world)
    torch.manual_seed(dist.rank())  # earlier draws must not matter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "KEPT_BELOW", 0)  # in parity_worker.py two ranks keep all features
        patch.setattr(contrast, "BLOCK", 1)
        engine.step(micro_batches, 0.5, STEP)
    share = 1 - config.optim.betas[0]
    return {name: whole["exp_avg"].double() / share for name, whole in whole_tensors(engine)}


def reference_gradients(row: Row, shards: str) -> Gradients:
    """Micro-batch by micro-batch with the same draws if the row has dropout, else of the whole batch at once."""
    random = row["dropout"] or row["drop_path"]
    parts = row["ranks"] * row["accumulation"] if random else 1
    config = config_of(row, shards, G // parts)
    model, micro_batches = global_batch(config, 0, 1)
    model.train()
    sampler, size = model.sampler(G), G // parts
    if size % sampler.group:
        micro_batches = [at_full_length(batch, model.text_length) for batch in micro_batches]
    ids_G2 = torch.cat([ids_of(batch) for batch in micro_batches])
    counted = sampler.counted(ids_G2, G).split(size)
    counts = sum(denominators(*known) for known in zip(micro_batches, counted, strict=True))
    owns: list[Encoded] = []

    def losses(part: int, negatives: Negatives) -> Losses:
        seed_dropout(config.run.seed, STEP, part * size)
        pool = GlobalBatch(lambda *_: lambda: None, negatives, Counts(parts, counted[part], *counts))  # type: ignore[arg-type]
        return model(micro_batches[part], pool)

    total = torch.zeros(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maskvlm, "itc_loss", lambda own, *_: owns.append(own) or torch.zeros(()))
        given = [sampler.within(batch) for batch in micro_batches]
        if size % sampler.group:
            given = across(model, micro_batches, [encoded(partial(losses, part)) for part in range(parts)])
            owns.clear()
        for part, negatives in enumerate(given):
            total = total + weighted(losses(part, negatives), config) / parts
    total = total + config.objectives.itc * contrastive_loss(owns, *model.contrastive_scale())
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def across(model: MaskVLM, batches: list[Batch], everybody: list[tuple[Any, ...]]) -> list[Negatives]:
    """Each micro-batch's negatives, drawn from all of them, as features and tokens of one graph."""
    owns, images, texts = zip(*everybody, strict=True)
    image_GE, text_GE = (torch.cat([getattr(own, name) for own in owns]) for name in ("image_BE", "text_BE"))
    own = Encoded(image_GE, text_GE, *torch.cat([ids_of(batch) for batch in batches]).unbind(1))
    position_G, valid_GL = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("position_B", "valid_BL")
    )
    image_G, text_G = model.sampler(G).draw(own, own, position_G, model.temperature())
    drawn = (
        x.split(G // len(batches)) for x in (torch.cat(images)[image_G], torch.cat(texts)[text_G], valid_GL[text_G])
    )
    both = [(Negative(None, image), Negative(None, *text)) for image, *text in zip(*drawn, strict=True)]
    return [lambda *_, of_part=of_part: of_part for of_part in both]


class Encoding(Exception):
    """Stops a forward pass after the encoders; its arguments are features and tokens, in their graph."""


def encoded(losses: Callable[[Negatives], Losses]) -> tuple[Any, ...]:
    """Features, image tokens and text tokens of a micro-batch, in the graph of a pass that ends there."""

    def negatives(own: Encoded, _: Tensor, *tokens: Tensor) -> tuple[Negative, Negative]:
        raise Encoding(own, *tokens)

    with pytest.raises(Encoding) as stopped:
        losses(negatives)
    return stopped.value.args


def contrastive_loss(owns: list[Encoded], temperature: Tensor, bias: Tensor | None) -> Tensor:
    image, text = (torch.cat([getattr(own, name) for own in owns]) for name in ("image_BE", "text_BE"))
    ids = [torch.cat([getattr(own, name) for own in owns]) for name in ("image_id_B", "caption_id_B")]
    itself = torch.eye(G, dtype=torch.bool)
    same = ((ids[0][:, None] == ids[0]) | (ids[1][:, None] == ids[1])) & ~itself
    scores = image @ text.T / temperature
    if bias is not None:
        probability = torch.sigmoid(scores.double() + bias)
        right = torch.where(itself, probability, 1 - probability)
        return -right.log().masked_fill(same, 0).sum().float() / G
    scores = scores.masked_fill(same, float("-inf"))
    return (F.cross_entropy(scores, torch.arange(G)) + F.cross_entropy(scores.T, torch.arange(G))) / 2


def errors(found: Gradients, expected: Gradients) -> dict[str, float]:
    """Relative to the parameter's own gradient, or to a thousandth of the largest if that is greater."""
    least = max(gradient.norm().item() for gradient in expected.values()) / 1000
    wrong = {}
    for name, gradient in found.items():
        if not name.endswith(NOISE):
            wanted = expected.get(name, torch.zeros(())).double()
            wrong[name] = (gradient - wanted).norm().item() / max(wanted.norm().item(), least)
    return wrong


def worst(row: Row, shards: str) -> tuple[str, float]:
    """The parameter whose gradient is furthest from the reference's, and how far; all ranks must call, but only the
    first one's answer counts."""
    found = engine_gradients(row, shards)
    if dist.rank():
        return "", 0.0
    return max(errors(found, reference_gradients(row, shards)).items(), key=lambda item: item[1])


def worst_of_each(rows: Iterable[Row], shards: str) -> dict[str, tuple[str, float]]:
    """The worst parameter by row, of the rows for as many ranks as there are."""
    return {name_of(row): worst(row, shards) for row in rows if row["ranks"] == dist.world()}


def try_rows_for_four(shards: str, file: Path) -> None:
    """What each rank runs."""
    dist.init()
    found = worst_of_each(covering_rows(4), shards)
    if dist.rank() == 0:
        file.write_text(json.dumps(found))
    dist.barrier()
    dist.close()
