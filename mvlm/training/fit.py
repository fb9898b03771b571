"""Pretraining and fine-tuning, from the first step or from wherever a run was stopped."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mvlm.checkpoint.description import TOKENIZER
from mvlm.checkpoint.fencing import Attempt
from mvlm.checkpoint.fetch import begin_without, fetch_newest
from mvlm.checkpoint.folder_group import find_site
from mvlm.checkpoint.integrity import check_continuity
from mvlm.checkpoint.mirror import Mirror
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.upload import Uploads
from mvlm.config.schema import Config
from mvlm.config.validate import LAST_STEP
from mvlm.data.samples.dataset import Rows
from mvlm.data.samples.labelled import LabelledDataset, class_names
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.corpus import training_mixture
from mvlm.errors import OUT_OF_SIGHT, UserError, cannot_write
from mvlm.runtime import dist
from mvlm.training.auto_batch import settle_micro_batch
from mvlm.training.blocks import prepare_blocks
from mvlm.training.checkpoint import resume as checkpoints
from mvlm.training.checkpoint.order import with_stored_order
from mvlm.training.checkpoint.resume import Start
from mvlm.training.checkpoint.save import Saver
from mvlm.training.checkpoint.settings import deepspeed_changes, resume_config
from mvlm.training.doubtful import doubts
from mvlm.training.engine import Engine
from mvlm.training.health.signals import StopRequests
from mvlm.training.health.watchdog import Watchdog
from mvlm.training.kernels import apply_kernels
from mvlm.training.logging.metrics import opening
from mvlm.training.logging.mfu import Arithmetic
from mvlm.training.logging.monitor import Monitor
from mvlm.training.logging.trackers import require_installed
from mvlm.training.optim import count_parameters, freeze
from mvlm.training.rehearsal import rehearse
from mvlm.training.run_folder import STARTED, build_starting_model, describe_run, prepare_tokenizer, read_description
from mvlm.training.trainer import Evaluate, Trainer
from mvlm.training.zero.config import accumulation_steps, micro_batch, resolve
from mvlm.training.zero.json_file import read_deepspeed_json


def train(
    config: Config,
    names: tuple[str, str],
    given: frozenset[str],
    evaluator: Callable[[Config], Evaluate | None] | None = None,
    stop: StopRequests | None = None,
) -> int:
    """Train until the last step or until told to stop.

    Args:
        names: the paths of the DeepSpeed JSON and of the run TOML.
        given: the keys that the run TOML and the overrides set, of `given_keys`: where a run is resumed, all others
            keep the values that it has.
        evaluator: makes what is called every `eval.every` steps and after the last; None = nothing is.
        stop: has listened since the process began; None = from now on.

    Returns:
        The exit code: 0 done, 75 preempted with everything saved.

    Raises:
        UserError: the configuration, the data or the checkpoint does not allow this run.
        StorageLost: the run folder is not to be reached any more.
    """
    run = Path(config.run.dir)
    stop = stop or StopRequests()
    content = read_deepspeed_json(names[0])
    mirror = Mirror(config.checkpoint.mirror) if config.checkpoint.mirror else None
    site = find_site(run, mirrored=mirror is not None)
    if mirror and not fetch_newest(mirror, run, site):
        begin_without(mirror, run, site)
    start = checkpoints.starting_point(run, config.checkpoint)
    resumed = dist.as_rank_0(partial(resume_config, config, given, start)) if start.resumes else None
    if resumed:
        config = resumed.config
        require_installed(config.log)
    stop.limit_time(config.train.time_limit)
    if config.train.deterministic:
        _compute_deterministically()
    mixture = training_mixture(config.data, config.task.corpus, config.data.patience)
    total, warmup = schedule_steps(config, mixture.per_epoch, resumed.state if resumed else None)
    evaluate = evaluator(config) if evaluator else None
    rehearse(config, content, names, start, mixture, (total, warmup))
    tokenizer = prepare_tokenizer(config, run, mixture, start, site)
    classes = class_names(config.task.name, run / TOKENIZER)
    model, beginning = build_starting_model(config, tokenizer, start, run, len(classes))
    dataset: Rows[Any] = PairDataset(mixture, tokenizer, config, model.grid)
    if classes:
        dataset = LabelledDataset(mixture, config.task.name, tokenizer, config, classes)
    parameters = count_parameters(model)
    ds_config = resolve(content, config, names, dist.world(), total, warmup, parameters)
    stage = ds_config["zero_optimization"]["stage"]
    freeze(model, config.train.freeze)
    apply_kernels(model, config)
    prepare_blocks(model, config, stage)
    settings = config
    if config.train.micro_batch == "auto":
        config = settle_micro_batch(config, model, dataset, ds_config, start)
        ds_config = resolve(content, config, names, dist.world(), total, warmup, parameters)
    layout = {
        "micro_batch": micro_batch(config, dist.world()),
        "accumulation": accumulation_steps(config, dist.world()),
        "zero_stage": stage,
        "parameters": parameters,
        "steps": total,
        "rows": len(mixture),
    }
    arithmetic = Arithmetic.of(config, model, ds_config)
    engine = Engine(model, config, ds_config)
    state = TrainState(0, 0, config.run.seed, mixture.fingerprint, frozen=config.train.freeze)
    if resumed:
        start, state = _go_on(engine, run, start, mixture.fingerprint, resumed.alters_loss)
    attempt = Attempt(run, mirror, start.resumes and start.own, site)
    if resumed and start.checkpoint and start.own:
        if checkpoints.is_gone(start.checkpoint):  # until now the attempt before might still be alive
            start, state = _go_on(engine, run, start, mixture.fingerprint, resumed.alters_loss)
        assert start.checkpoint
        checkpoints.make_latest(start.checkpoint)  # it is where a bad step goes back to
    # A run that was refused before now must not look like this one.
    changes = resumed.told if resumed else ()
    if start.checkpoint and start.resumes:
        changes += dist.as_rank_0(partial(deepspeed_changes, start.checkpoint, ds_config))
    describe_run(run, settings, ds_config, engine.model, layout, site, beginning, attempt.number)
    dist.barrier()  # the ranks that lead a checkpoint's saving read it there
    with ExitStack() as stack:
        monitor = stack.enter_context(Monitor(run, state.step, total, config.log))
        monitor.say(opening(config, state, start.checkpoint if start.resumes else None, layout))
        for sentence in changes:
            monitor.say(sentence)
        if monitor.main:
            for _, doubt in doubts(config, content, names[0], mixture, total):
                monitor.say(f"warning: {doubt}")
        if monitor.main and not start.resumes and (cut := dataset.told_cut()):
            monitor.say(cut)
        if beginning:
            monitor.say(f"{beginning}\nEvery tensor stands in {run / STARTED}.")
        watchdog = stack.enter_context(Watchdog(run, attempt.number, config.train.hang_minutes, site.ranks))
        uploads = Uploads(mirror, run, config.checkpoint, attempt, site, monitor.say)
        description = read_description(run) if site.leads else {}
        saver = stack.enter_context(Saver(engine, run, config.checkpoint, attempt, site, uploads, description))
        trainer = Trainer(
            config,
            engine,
            arithmetic,
            dataset,
            state,
            layout,
            warmup,
            stop,
            attempt,
            monitor,
            watchdog,
            saver,
            uploads,
            evaluate,
        )
        stack.callback(trainer.close)
        can_go_back = start.resumes and start.own
        if start.checkpoint and can_go_back:
            uploads.offer_start(start.checkpoint)
        try:
            return trainer.to_the_end(can_go_back)
        except OSError as error:
            if error.errno in OUT_OF_SIGHT:
                raise cannot_write(f"The run folder {run}", error, so="") from None
            raise


def schedule_steps(config: Config, samples: int, state: TrainState | None = None) -> tuple[int, int]:
    """Updates in all and updates of warm-up, of so many samples an epoch.

    Args:
        state: that a run is resumed from. Where updates before it took another global batch, epochs are still counted
            in samples: the learning rate goes on from where it was, and its warm-up may have begun before update 0.

    Raises:
        UserError: there are more than a checkpoint's name has room for, or fewer than have been made.
    """
    batch = config.train.global_batch
    per_epoch, offset = samples / batch, 0.0
    if state:
        offset = ((state.step + len(state.skipped)) * batch - state.samples_seen) / batch
    total = config.train.steps or math.ceil(config.train.epochs * per_epoch + offset)
    if state and state.step > total:
        raise UserError(
            f"The run is at step {state.step}, and train.{'steps' if config.train.steps else 'epochs'} ends it at step "
            f"{total}: give more, or resume an older checkpoint."
        )
    if total > LAST_STEP:
        raise UserError(
            f"train.epochs = {config.train.epochs} makes {total} steps of data.train: lower it, so that they are at "
            f"most {LAST_STEP}, which a checkpoint's name has room for."
        )
    warmup = config.optim.warmup_steps
    if warmup < 0:
        warmup = round(config.optim.warmup_epochs * per_epoch + offset)
    return total, min(warmup, total - 1)


def _go_on(engine: Engine, run: Path, start: Start, fingerprint: str, fresh: bool) -> tuple[Start, TrainState]:
    """Fill the engine; the start as it turned out to be, and its state, if this data can go on so.

    Args:
        fresh: the losses before are no measure of those to come.
    """
    state, checkpoint = checkpoints.restore_start(engine, run, start)
    check_continuity(checkpoint, state, fingerprint)
    state = with_stored_order(state, checkpoint)
    return replace(start, checkpoint=checkpoint), replace(state, recent_losses=()) if fresh else state


def _compute_deterministically() -> None:
    """Ask torch for the same bits in every run, and for an error where it cannot give them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
