"""Pretraining and fine-tuning, from the first step or from wherever a run was stopped."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvlm import dist
from mvlm.checkpoint.layout import LAST_STEP
from mvlm.config import Config
from mvlm.data.index import training_mixture
from mvlm.data.labelled import LabelledDataset, class_names
from mvlm.data.pairs import PairDataset
from mvlm.data.rows import Rows
from mvlm.errors import OUT_OF_SIGHT, UserError, cannot_write
from mvlm.train import checkpoint as checkpoints
from mvlm.train.arithmetic import Arithmetic
from mvlm.train.attempt import Attempt
from mvlm.train.blocks import prepare_blocks
from mvlm.train.checkpoint import Start
from mvlm.train.doubtful import doubts
from mvlm.train.ds_config import accumulation_steps, micro_batch, resolve
from mvlm.train.ds_json import read_deepspeed_json
from mvlm.train.engine import Engine
from mvlm.train.fetch import begin_without, fetch_newest
from mvlm.train.fitting import settle_micro_batch
from mvlm.train.folder import STARTED, TOKENIZER, build_model, describe_run, prepare_tokenizer
from mvlm.train.kernels import apply_kernels
from mvlm.train.metrics import opening
from mvlm.train.mirror import Mirror
from mvlm.train.monitor import Monitor
from mvlm.train.optim import count_parameters, freeze
from mvlm.train.order import with_stored_order
from mvlm.train.rehearsal import rehearse
from mvlm.train.saver import Saver
from mvlm.train.signals import StopRequests
from mvlm.train.sites import find_site
from mvlm.train.state import TrainState
from mvlm.train.trainer import Evaluate, Trainer
from mvlm.train.uploads import Uploads
from mvlm.train.watchdog import Watchdog
from mvlm.train.wholeness import check_continuity


def train(
    config: Config, names: tuple[str, str], evaluate: Evaluate | None = None, stop: StopRequests | None = None
) -> int:
    """Train until the last step or until told to stop.

    Args:
        names: the paths of the DeepSpeed JSON and of the run TOML.
        evaluate: called every `eval.every` steps and after the last.
        stop: has listened since the process began; None = from now on.

    Returns:
        The exit code: 0 done, 75 preempted with everything saved.

    Raises:
        UserError: the configuration, the data or the checkpoint does not allow this run.
        StorageLost: the run folder is not to be reached any more.
    """
    run = Path(config.run.dir)
    stop = stop or StopRequests()
    stop.limit_time(config.train.time_limit)
    mixture = training_mixture(config.data, config.task.corpus, config.data.patience)
    total, warmup = schedule_steps(config, mixture.per_epoch)
    content = read_deepspeed_json(names[0])
    mirror = Mirror(config.checkpoint.mirror) if config.checkpoint.mirror else None
    site = find_site(run, mirrored=mirror is not None)
    if mirror and not fetch_newest(mirror, run, site):
        begin_without(mirror, run, site)
    start = checkpoints.starting_point(run, config.checkpoint)
    rehearse(config, content, names, start, mixture, (total, warmup))
    tokenizer = prepare_tokenizer(config, run, mixture, start, site)
    classes = class_names(config.task.name, run / TOKENIZER)
    model, beginning = build_model(config, tokenizer, start, len(classes))
    dataset: Rows[Any] = PairDataset(mixture, tokenizer, config, model.grid)
    if classes:
        dataset = LabelledDataset(mixture, config.task.name, tokenizer, config, classes)
    parameters = count_parameters(model)
    ds_config = resolve(content, config, names, dist.world(), total, warmup, parameters)
    stage = ds_config["zero_optimization"]["stage"]
    freeze(model, config.train.freeze)
    apply_kernels(model, config)
    prepare_blocks(model, config, stage)
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
    if start.resumes:
        start, state = _go_on(engine, run, start, state)
    attempt = Attempt(run, mirror, start.resumes and start.own, site)
    if start.checkpoint and start.resumes and start.own:
        if checkpoints.is_gone(start.checkpoint):  # until now the attempt before might still be alive
            start, state = _go_on(engine, run, start, state)
        assert start.checkpoint
        checkpoints.make_latest(start.checkpoint)  # it is where a bad step goes back to
    # A run that was refused before now must not look like this one.
    describe_run(run, config, ds_config, engine.model, layout, site, beginning)
    with ExitStack() as stack:
        monitor = stack.enter_context(Monitor(run, state.step, total, config.log))
        monitor.say(opening(config, state, start.checkpoint if start.resumes else None, layout))
        if monitor.main:
            for _, doubt in doubts(config, content, names[0], mixture, total):
                monitor.say(f"warning: {doubt}")
        if monitor.main and not start.resumes and (cut := dataset.told_cut()):
            monitor.say(cut)
        if beginning:
            monitor.say(f"{beginning}\nEvery tensor stands in {run / STARTED}.")
        watchdog = stack.enter_context(Watchdog(run, attempt.number, config.train.hang_minutes, site.ranks))
        uploads = Uploads(mirror, run, config.checkpoint, attempt, site, monitor.say)
        saver = stack.enter_context(Saver(engine, run, config.checkpoint, attempt, site, uploads))
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


def schedule_steps(config: Config, samples: int) -> tuple[int, int]:
    """Updates in all and updates of warm-up, of so many samples an epoch.

    Raises:
        UserError: there are more than a checkpoint's name has room for.
    """
    per_epoch = samples / config.train.global_batch
    total = config.train.steps or math.ceil(config.train.epochs * per_epoch)
    if total > LAST_STEP:
        raise UserError(
            f"train.epochs = {config.train.epochs} makes {total} steps of data.train: lower it, so that they are at "
            f"most {LAST_STEP}, which a checkpoint's name has room for."
        )
    warmup = config.optim.warmup_steps
    if warmup < 0:
        warmup = round(config.optim.warmup_epochs * per_epoch)
    return total, min(warmup, total - 1)


def _go_on(engine: Engine, run: Path, start: Start, here: TrainState) -> tuple[Start, TrainState]:
    """Fill the engine; the start as it turned out to be, and its state, if this configuration and data can go on so."""
    state, checkpoint = checkpoints.restore_start(engine, run, start)
    check_continuity(checkpoint, state, here.seed, here.manifest_fingerprint, here.frozen)
    return replace(start, checkpoint=checkpoint), with_stored_order(state, checkpoint)
