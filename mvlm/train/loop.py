"""Pretraining, from the first step or from wherever a run was stopped."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mvlm import dist
from mvlm.config import Config
from mvlm.data.dataset import PairDataset
from mvlm.data.index import Mixture
from mvlm.data.loader import Loader
from mvlm.data.order import Order
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.train import checkpoint as checkpoints
from mvlm.train.checkpoint import TrainState
from mvlm.train.ds_config import accumulation_steps, micro_batch, read_deepspeed_json, resolve
from mvlm.train.engine import Engine
from mvlm.train.folder import build_model, describe_run, prepare_tokenizer
from mvlm.train.monitor import Monitor
from mvlm.train.optim import count_parameters
from mvlm.train.schedule import lr_factor
from mvlm.train.signals import StopFlag

DONE, PREEMPTED = 0, 75

Evaluate = Callable[[MaskVLM, Path, int], dict[str, float]]
"""(model, run folder, step) -> flat metrics; called on every rank at once."""


def train(config: Config, names: tuple[str, str], evaluate: Evaluate | None = None) -> int:
    """Train until the last step or until told to stop.

    Args:
        names: the paths of the DeepSpeed JSON and of the run TOML.
        evaluate: called every `eval.every` steps and after the last.

    Returns:
        The exit code: 0 done, 75 preempted with everything saved.

    Raises:
        UserError: the configuration, the data or the checkpoint does not allow this run.
    """
    run = Path(config.run.dir)
    stop = StopFlag()
    mixture = Mixture(config.data.train)
    total, warmup = schedule_steps(config, len(mixture))
    tokenizer = prepare_tokenizer(config, run, mixture)
    model, resumed = build_model(config, run, tokenizer)
    dataset = PairDataset(mixture, tokenizer, config, model.grid)
    parameters = count_parameters(model)
    ds_config = resolve(read_deepspeed_json(names[0]), config, names, dist.world(), total, warmup, parameters)
    layout = {
        "micro_batch": micro_batch(config, dist.world()),
        "accumulation": accumulation_steps(config, dist.world()),
        "zero_stage": ds_config["zero_optimization"]["stage"],
        "parameters": parameters,
        "steps": total,
        "rows": len(mixture),
    }
    engine = Engine(model, config, ds_config)
    state = TrainState(0, 0, config.run.seed, mixture.fingerprint)
    if resumed:
        state = _agreeing(checkpoints.restore(engine, resumed), state, resumed)
    describe_run(run, config, ds_config, engine.model, layout)  # not before: a refused run must not look like this one
    order = Order(len(mixture), config.run.seed, config.data.shuffle_block, config.data.shuffle_window)

    saved = state.step if resumed else -1
    with (
        Monitor(run, state.step, total, config.log.tensorboard) as monitor,
        Loader(
            dataset,
            order,
            global_batch=config.train.global_batch,
            micro_batch=layout["micro_batch"],
            rank=dist.rank(),
            world=dist.world(),
            start_position=state.samples_seen,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            pin=engine.device.type == "cuda",
        ) as loader,
    ):
        monitor.say(_opening(config, state, resumed, layout))
        clock, waited, since = time.perf_counter(), loader.wait_seconds, state.step
        steps = iter(loader)
        while state.step < total and not stop.agreed():
            factor = lr_factor(state.step, warmup, total, config.optim.floor)
            losses = engine.step(next(steps), factor, state.step)
            seen = state.samples_seen + config.train.global_batch
            state = TrainState(state.step + 1, seen, state.seed, state.manifest_fingerprint)
            monitor.advance(state.step)
            last = state.step == total
            if state.step % config.log.every == 0 or last:
                metrics = _metrics(config, engine, losses, state, factor)
                now = time.perf_counter()
                metrics["pairs_per_s"] = (state.step - since) * config.train.global_batch / (now - clock)
                metrics["data_wait"] = (loader.wait_seconds - waited) / (now - clock)
                metrics["epoch"] = seen / len(mixture)
                monitor.log(metrics)
                clock, waited, since = now, loader.wait_seconds, state.step
            aside = time.perf_counter()
            if last or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
                checkpoints.save(engine, state, run, config.checkpoint)
                saved = state.step
            if evaluate and (last or (config.eval.every and state.step % config.eval.every == 0)):
                monitor.log({"step": state.step} | _evaluate(evaluate, engine, run, state.step))
            clock += time.perf_counter() - aside  # neither is training
        if saved != state.step:
            checkpoints.save(engine, state, run, config.checkpoint)
        if state.step < total:
            monitor.say(f"Stopped by a signal at step {state.step}; the same command goes on from there.")
        dist.barrier()  # no rank leaves before all have saved: a launcher ends the others at the first exit
    return DONE if state.step >= total else PREEMPTED


def schedule_steps(config: Config, rows: int) -> tuple[int, int]:
    """Updates in all and updates of warm-up."""
    per_epoch = rows / config.train.global_batch
    total = config.train.steps or math.ceil(config.train.epochs * per_epoch)
    warmup = config.optim.warmup_steps
    if warmup < 0:
        warmup = round(config.optim.warmup_epochs * per_epoch)
    return total, min(warmup, total - 1)


def _agreeing(state: TrainState, here: TrainState, checkpoint: Path) -> TrainState:
    """The checkpoint's state, if it can go on exactly with this configuration and this data."""
    if state.manifest_fingerprint != here.manifest_fingerprint:
        raise UserError(
            f"{checkpoint} was trained on other shards than data.train names (fingerprint "
            f"{state.manifest_fingerprint[:12]} and not {here.manifest_fingerprint[:12]}): "
            "give the same shards, or start a new run.dir with checkpoint.init."
        )
    if state.seed != here.seed:
        raise UserError(
            f"{checkpoint} was trained with run.seed {state.seed} and this run sets {here.seed}: "
            "give the same seed, or start a new run.dir with checkpoint.init."
        )
    return state


def _metrics(
    config: Config, engine: Engine, losses: dict[str, Any], state: TrainState, factor: float
) -> dict[str, Any]:
    """The global batch's losses and what else one step tells; this is where the host waits for the device."""
    means = (dist.all_reduce(torch.stack(list(losses.values()))) / dist.world()).tolist()
    parts = dict(zip(losses, means, strict=True))
    loss = sum(getattr(config.objectives, name) * value for name, value in parts.items())
    metrics: dict[str, Any] = {"step": state.step, "loss": loss} | parts
    metrics["lr"], metrics["encoder_lr"] = config.optim.lr * factor, config.optim.encoder_lr * factor
    metrics["grad_norm"] = None if engine.grad_norm is None else float(engine.grad_norm)
    if engine.device.type == "cuda":
        metrics["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    else:
        metrics["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return metrics


def _evaluate(evaluate: Evaluate, engine: Engine, run: Path, step: int) -> dict[str, float]:
    engine.engine.eval()
    with torch.no_grad():
        return evaluate(engine.model, run, step)


def _opening(config: Config, state: TrainState, resumed: Path | None, layout: dict[str, Any]) -> str:
    start = f"Going on from {resumed.name}" if resumed else "Starting"
    return (
        f"{start}: {layout['parameters'] / 1e6:.1f} M parameters, {layout['rows']:,} images, "
        f"{layout['steps']:,} steps of {config.train.global_batch} pairs = {dist.world()} ranks x "
        f"{layout['accumulation']} x {layout['micro_batch']}, ZeRO {layout['zero_stage']}, {dist.device()}; "
        f"everything goes to {config.run.dir}"
    )
