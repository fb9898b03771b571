"""What each rank runs: a few steps in each of several layouts, whose numbers all go to a JSON file.

The first step of each is also compared with the oracle of tests/model: every pair by itself, in float64.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvlm.batch import Batch, Losses, MetricAccumulator
from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.data.shards.mixture import training_mixture
from mvlm.kernels.fusion import FUSION
from mvlm.kernels.views import VIEWS
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.runtime import dist, replicas
from mvlm.training.engine import Engine
from mvlm.training.logging.metrics import reported
from mvlm.training.optim import count_parameters, parameter_groups
from mvlm.training.parallelize import parallelize
from mvlm.training.zero.config import RunSide, resolve
from tests.conftest import ROOT, TINY, pair_args
from tests.model.oracle import Oracle
from tests.training.saved_tensors import whole_tensors

Gradients = dict[str, Tensor]

STEPS = 3
# Softmax ignores a bias that all keys share: its gradient is rounding noise, of which Adam makes a full step.
NOISE = ("key.bias", "key_value.bias", "qkv.bias")
SWITCHES = [
    (),
    ("hide=both",),
    ("reconstruct_from=self",),
    ("alignment_inputs=masked",),
    ("hide=both", "alignment_inputs=masked"),
    ("itm=0",),
    ("itc=0",),
    ("image=0",),
    ("text=0",),
    ("image=0", "text=0"),
    ("itc=0", "itm=0"),
    ("normalized_targets=true",),
    ("exclude_duplicates=false",),
    ("itm_negatives=uniform",),
]
"""Settings that `forward` reads in each step; tests/model/test_maskvlm.py has those that a model is built for."""

LAYOUTS = [(1, 2), (3, 1), (0, 2), (2, 2), (3, 2)]  # ZeRO stage, accumulation; campaigns train all

WEIGHTS = [
    *("objectives.image=0.5", "objectives.text=2", "objectives.itc=0.7", "objectives.itm=3"),
    "objectives.itm_group=16",  # the whole global batch, so that a group spans ranks and micro-batches
]


def configuration(shards: str, micro: int, overrides: Iterable[str] = ()) -> Config:
    own = [f"data.train={shards}/train", f"train.micro_batch={micro}", "optim.lr=3e-3"]
    return load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *own, *overrides])


def weighted(losses: Losses, config: Config) -> Tensor:
    objectives = config.objectives
    weights = {"image": objectives.image, "text": objectives.text, "itc": objectives.itc, "itm": objectives.itm}
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def built(config: Config, rank: int, world: int) -> tuple[MaskVLM, Loader]:
    mixture = training_mixture(config.data)
    captions = [caption for row in range(len(mixture)) for caption in mixture.row(row).captions]
    tokenizer = train_tokenizer(captions, config.data.vocabulary)
    torch.manual_seed(0)
    model = build_model(config.blueprint, tokenizer)
    tokens = Counter(token for caption in captions for token in tokenizer(caption, add_special_tokens=False).input_ids)
    with torch.no_grad():  # some words are guessed right from the start, or all accuracies would be equal zeros
        model.mlm_head.classifier.bias[tokens.most_common(1)[0][0]] = 3.0
    loader = Loader(
        PairDataset(mixture, tokenizer, *pair_args(config), model.grid),
        make_sampler(mixture, config.run.seed, [order_of(config.data)]),
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        rank=rank,
        world=world,
        workers=0,
    )
    return model, loader


def resolved(model: MaskVLM, config: Config, content: dict[str, Any], world: int) -> dict[str, Any]:
    train, parameters = config.train, count_parameters(model)
    names, steps = ("json", "toml"), (10, 2)
    return resolve(content, RunSide(names, config.run.dir, train, config.optim, world, steps, parameters))


def engine_of(
    model: MaskVLM,
    config: Config,
    content: dict[str, Any],
    world: int,
    settle: Callable[[dict[str, Any]], dict[str, Any]] = lambda ds_config: ds_config,
) -> Engine:
    """The engine that a run makes with this DeepSpeed JSON."""
    ds_config = resolved(model, config, content, world)
    return parallelize(
        model,
        ds_config,
        lambda: settle(ds_config),
        train=config.train,
        kernels=config.kernels,
        optim=config.optim,
        objectives=config.objectives,
        seed=config.run.seed,
    )


def steps_of(loader: Loader, steps: int = 4) -> list[list[Batch]]:
    """The micro-batches of each step."""
    with loader:
        return list(islice(loader, steps))


def engine_run(shards: str, stage: int, accumulation: int, reference: Gradients) -> dict[str, Any]:
    world = replicas.world()
    config = configuration(shards, 16 // (world * accumulation), [*WEIGHTS, "train.recompute=0.5"])
    model, loader = built(config, replicas.rank(), world)
    split = {"tensor_parallel": {"autotp_size": replicas.size()}}
    engine = engine_of(model, config, {"zero_optimization": {"stage": stage}} | split, world)
    history: dict[str, Any] = {"grad_norm": []}
    for step, micro_batches in enumerate(steps_of(loader, STEPS)):
        tally = MetricAccumulator()
        for name, loss in engine.step(micro_batches, 0.5, step, tally).items():
            history.setdefault(name, []).append((replicas.all_reduce(loss) / world).item())
        for name, value in reported(tally).items():
            history.setdefault(name, []).append(value)
        assert engine.grad_norm is not None
        history["grad_norm"].append(float(engine.grad_norm))
        if step == 0:
            history["gradient_errors"] = gradient_errors(engine, config, reference)
    sums = {name: float(np.abs(whole["weight"].double().numpy()).sum()) for name, whole in whole_tensors(engine)}
    return history | {"weights": [sums[name] for name in sorted(sums) if not name.endswith(NOISE)]}


def reference_step(shards: str) -> tuple[dict[str, float], Gradients]:
    """Losses of the first global batch and gradients of their weighted sum, pair by pair in float64."""
    config = configuration(shards, 16, WEIGHTS)
    model, loader = built(config, 0, 1)
    copies = {name: parameter.detach().double().requires_grad_() for name, parameter in model.named_parameters()}
    losses = Oracle(copies, config, vision_heads=2, text_heads=2)(steps_of(loader, 1)[0][0]).losses
    weighted(losses, config).backward()
    return {name: loss.item() for name, loss in losses.items()}, {name: copy.grad for name, copy in copies.items()}


def gradient_errors(engine: Engine, config: Config, reference: Gradients) -> dict[str, float]:
    """Relative error of each parameter's gradient: after one update AdamW's first moment is a tenth of it.

    All ranks must call; those without a reference get nothing.

    A bias's error is relative to its weight's gradient if that is greater: both sums round alike, and in the biases of
    the contrastive projections nearly everything cancels.
    """
    found = {name: whole["exp_avg"].double().cpu() for name, whole in whole_tensors(engine) if not name.endswith(NOISE)}
    if not reference:
        return {}
    norm = torch.stack([gradient.norm() for gradient in reference.values()]).norm()
    share = (1 - config.optim.betas[0]) * min(1.0, config.optim.clip / norm.item())
    errors = {}
    for name, gradient in found.items():
        expected = share * reference[name]
        weight = reference.get(name.removesuffix("bias") + "weight", reference[name])
        scale = max(expected.norm(), share * weight.norm() if name.endswith("bias") else 0)
        errors[name] = ((gradient - expected).norm() / scale).item()
    return errors


def plain_and_pruned(shards: str, switches: list[tuple[str, ...]]) -> dict[str, dict[str, float]]:
    """By switch, under ZeRO-3, the distance between losses and gradients of plain passes and of pruned ones."""
    shape = [*WEIGHTS, "model.cross_depth=2", "model.decoder_depth=2", "optim.clip=0"]
    config = configuration(shards, 16 // dist.world(), shape)
    model, loader = built(config, dist.rank(), dist.world())
    ds_config = resolved(model, config, {"zero_optimization": {"stage": 3}}, dist.world())
    engine = Engine(model, config.optim, config.objectives, ds_config, seed=config.run.seed)
    (batches,) = steps_of(loader, 1)
    found: dict[str, dict[str, float]] = {}
    for switch in switches:
        words = [*shape, *(f"objectives.{word}" for word in switch)]
        model.objectives = engine.objectives = configuration(shards, config.train.micro_batch, words).objectives
        pruned, plain = (step_by(engine, batches, *passes) for passes in (("pruned", "joint"), ("plain", "apart")))
        largest = max(float(tensor.norm()) for tensor in pruned.values())
        found[" ".join(switch)] = {
            name: float((plain[name] - tensor).norm()) / max(float(tensor.norm()), largest / 1000)
            for name, tensor in pruned.items()
        }
    return found


def step_by(engine: Engine, batches: list[Batch], fusion: str, views: str) -> dict[str, Tensor]:
    """Losses and gradients by name, from a step that moves no weight."""
    FUSION.choose(fusion)
    VIEWS.choose(views)
    losses = engine.step(batches, 0.0, 0)
    moments = {name: whole["exp_avg"].double().cpu() for name, whole in whole_tensors(engine)}
    engine.prepare_state(0)
    FUSION.choose("auto")
    VIEWS.choose("auto")
    return moments | {name: loss.double().cpu() for name, loss in losses.items()}


def part_norms(model: MaskVLM) -> dict[str, float]:
    """Norms of the unclipped gradients by part; everything but the encoders and decoders is a head."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        is_head = "head" in name or "projection" in name or name.startswith("temperature")
        part = f"grad_norms/{'heads' if is_head else name.split('.')[0]}"
        assert parameter.grad is not None
        squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}


def plain_run(shards: str) -> dict[str, list[float]]:
    """A torch loop over whole global batches, without DeepSpeed, ranks or pools."""
    config = configuration(shards, 16, WEIGHTS)
    model, loader = built(config, 0, 1)
    groups = parameter_groups(model, config.optim)
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    history: dict[str, list[float]] = {"grad_norm": []}
    for (batch,) in steps_of(loader, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * group["peak_lr"]
        tally = MetricAccumulator()
        losses = model(batch, None, tally)
        optimizer.zero_grad()
        weighted(losses, config).backward()
        for name, value in reported(tally).items() | part_norms(model).items():
            history.setdefault(name, []).append(value)
        history["grad_norm"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)))
        optimizer.step()
        for name, loss in losses.items():
            history.setdefault(name, []).append(loss.item())
    sums = {name: p.detach().double().abs().sum().item() for name, p in model.named_parameters()}
    return history | {"weights": [sums[name] for name in sorted(sums) if not name.endswith(NOISE)]}


def train_layouts(shards: str, file: Path, short: bool = False) -> None:
    """What each rank runs: each of the layouts and switches, or two layouts and one switch."""
    dist.init()
    losses, gradients = reference_step(shards) if dist.rank() == 0 else ({}, {})
    layouts = LAYOUTS[: 2 if short else None]
    results: dict[str, Any] = {
        f"zero{stage}_accumulation{accumulation}": engine_run(shards, stage, accumulation, gradients)
        for stage, accumulation in layouts
    }
    results |= {"passes": plain_and_pruned(shards, [("itc=0",)] if short else SWITCHES), "plain": plain_run(shards)}
    from tests.training.gradient_matrix import covering_rows, worst_of_each  # a circular import

    results["matrix"] = worst_of_each(covering_rows(), shards)
    if dist.rank() == 0:
        file.write_text(json.dumps(results | {"reference": losses}))
    dist.barrier()
    dist.close()


def train_stages(shards: str, file: Path, *stages: int) -> None:
    """What each rank runs: only these ZeRO stages, without accumulation."""
    dist.init()
    losses, gradients = reference_step(shards) if dist.rank() == 0 else ({}, {})
    results = {f"zero{stage}_accumulation1": engine_run(shards, stage, 1, gradients) for stage in stages}
    if dist.rank() == 0:
        file.write_text(json.dumps(results | {"reference": losses}))
    dist.barrier()
    dist.close()
