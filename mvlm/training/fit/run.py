"""Pretraining and fine-tuning, from the first step or from wherever a run was stopped: plan, build, run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from mvlm.checkpoint.description import TOKENIZER
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.layout import step_name
from mvlm.checkpoint.newest import make_latest
from mvlm.checkpoint.peers import PeerCopies, memory_of
from mvlm.checkpoint.selection import Selector
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.upload import Uploads
from mvlm.config.schema import Config
from mvlm.config.stages import Table
from mvlm.data.loading.truncation import truncation_warning
from mvlm.data.samples.captions import COARSE
from mvlm.data.samples.dataset import ShardDataset
from mvlm.data.samples.labelled import class_names
from mvlm.data.shards.mixture import kept_sentences
from mvlm.errors import OUT_OF_SIGHT, cannot_write
from mvlm.pretrained.report import InitReport
from mvlm.runtime import dist, replicas
from mvlm.training.auto_batch import find_micro_batch
from mvlm.training.build import build_dataset, build_starting_model
from mvlm.training.checkpoint.resume import Start, restore_start
from mvlm.training.checkpoint.save import Saver
from mvlm.training.compilation import is_compiled
from mvlm.training.engine import Engine
from mvlm.training.fit.describe import STARTED, describe_run
from mvlm.training.fit.planning import Plan, make_plan
from mvlm.training.fit.settings import deepspeed_changes
from mvlm.training.fit.stages import has_next_stage
from mvlm.training.health.anomaly import AnomalyDetector
from mvlm.training.health.signals import StopRequests
from mvlm.training.health.watchdog import Watchdog
from mvlm.training.logging.metrics import Reporter, opening
from mvlm.training.logging.mfu import Arithmetic
from mvlm.training.logging.monitor import Monitor
from mvlm.training.optim import count_parameters
from mvlm.training.parallelize import parallelize
from mvlm.training.run_folder import prepare_tokenizer, read_description
from mvlm.training.schedule import Schedule
from mvlm.training.stream import TrainingStream
from mvlm.training.trainer import Health, Trainer
from mvlm.training.validation import Evaluate, Validation
from mvlm.training.warnings import find_warnings, groups_warning
from mvlm.training.zero.json_file import unused


def train(
    config: Config,
    names: tuple[str, str],
    given: frozenset[str],
    evaluator: Callable[[Config], Evaluate | None] | None = None,
    stop: StopRequests | None = None,
    tables: Sequence[Table] = (),
) -> int:
    """Train until the last step, of the last stage if there are several, or until asked to stop.

    Args:
        names: the paths of the DeepSpeed JSON and of the run TOML.
        given: the keys that the run TOML and the overrides set, of `given_keys`: if a run is resumed, all others keep
            the values that it has.
        evaluator: makes what is called every `eval.every` steps and after the last; None = nothing is.
        stop: has been listening since the process began; None = listen from now on.
        tables: the `[[stage]]` tables of the run TOML.

    Returns:
        The exit code: 0 done, 75 preempted with everything saved.

    Raises:
        UserError: the configuration, the data or the checkpoint does not allow this run.
        StorageLost: the run folder can no longer be reached.
    """
    stop = stop or StopRequests()
    while True:
        plan = make_plan(config, names, given, stop, tables)
        code, goes_on = _train_stage(plan, evaluator, stop)
        number = plan.standing.number if plan.standing else 0
        if not goes_on or not dist.as_rank_0(partial(has_next_stage, plan.folder, number)):
            return code
        gc.collect()  # a stage's engine is full of reference cycles, and the next needs its memory


def _train_stage(
    plan: Plan, evaluator: Callable[[Config], Evaluate | None] | None, stop: StopRequests
) -> tuple[int, bool]:
    """The exit code, and whether another stage may begin: the last step was made, and patience does not end the run."""
    evaluate = evaluator(plan.config) if evaluator else None
    plan.rehearse(evaluator)
    with ExitStack() as stack:
        trainer = build(plan, evaluate, stop, stack)
        try:
            return trainer.run(), trainer.is_over and not trainer.validation.must_end(trainer.state)
        except OSError as error:
            if error.errno in OUT_OF_SIGHT:
                raise cannot_write(f"The run folder {plan.folder}", error, remedy="") from None
            raise


def build(plan: Plan, evaluate: Evaluate | None, stop: StopRequests, stack: ExitStack) -> Trainer:
    """The engine, filled if a run is resumed, and the parts around it, which `stack` closes; all ranks must call."""
    config, folder, group, mirror = plan.config, plan.folder, plan.group, plan.mirror
    engine, dataset, arithmetic, beginning = _build_engine(plan)
    start, state, attempt = _claim(plan, engine)
    resumed, own = start.checkpoint if start.resumes else None, start.resumes and start.own
    changes = dist.as_rank_0(partial(deepspeed_changes, resumed, engine.ds_config)) if resumed else ()
    layout, stages = _layout(plan, engine), plan.standing.stages if plan.standing else None
    # Only now, so that a run that is refused leaves no description here.
    facts = engine.ds_config, engine.model, layout, group, beginning, attempt.number, stages, state
    describe_run(folder, config, *facts, resumes=own)
    dist.barrier()  # the ranks that lead a checkpoint's saving read it there
    monitor = stack.enter_context(Monitor(folder, state.step, layout["steps"], config.log))
    monitor.say(opening(config.run.dir, config.train, resumed, layout))
    warnings = _warnings(plan, dataset, layout["micro_batch"]) if monitor.main else []
    for sentence in (*_settled(plan), *changes, *kept_sentences(plan.mixture), *warnings):
        monitor.say(sentence)
    if beginning:
        monitor.say(f"{beginning}\nEvery tensor is listed in {folder / STARTED}.")
    watchdog = stack.enter_context(Watchdog(folder, attempt.number, config.train.hang_minutes, group.ranks))
    memory = memory_of(folder) if config.checkpoint.peers and not group.is_whole else None
    uploads = Uploads(mirror, folder, config.checkpoint, attempt, group, monitor.say, memory)
    copies = PeerCopies(memory, group) if memory else None
    description = read_description(folder) if group.leads else {}
    saver = stack.enter_context(Saver(engine, folder, config.checkpoint, attempt, group, uploads, description, copies))
    selector = Selector.of(config.eval) if evaluate else None
    state = saver.settle_best(state) if selector and start.own else replace(state, best=None)
    state = replace(state, unevaluated=state.unevaluated and start.own)
    seed, pairs = config.run.seed, layout["micro_batch"]
    stream = TrainingStream(dataset, config.data, config.train, folder, seed, pairs, state, monitor.say)
    stack.callback(stream.close)
    reporter = Reporter(folder, monitor, attempt, engine, stream, config.optim, arithmetic)
    stack.callback(reporter.close)
    audits = engine.audit.whose if engine.audit else ""
    health = Health(stop, watchdog, AnomalyDetector(config.train.spike, audits=audits))
    lr, is_last = plan.learning_rate, plan.steps[0] == layout["steps"]
    saving = config.checkpoint.every, config.checkpoint.keep_every
    schedule = Schedule(plan.steps[0], lr, config.log.every, *saving, config.eval.every, is_last)
    trainer = Trainer(state, schedule, engine, stream, saver, reporter, health, Validation(evaluate, selector), own)
    if resumed and start.own:
        uploads.offer_start(resumed, resumed.with_name(step_name(state.best.step)) if state.best else None)
    return trainer


def _layout(plan: Plan, engine: Engine) -> dict[str, Any]:
    """What run.json says of the run's size and shape."""
    layout = {
        "micro_batch": engine.ds_config["train_micro_batch_size_per_gpu"],
        "accumulation": engine.ds_config["gradient_accumulation_steps"],
        "zero_stage": engine.stage,
        "parameters": count_parameters(engine.model),
        "steps": plan.steps[0],
        "rows": len(plan.mixture),
        "selection": plan.mixture.selection,
    }
    if plan.standing:
        sections = plan.standing.sections
        layout |= {"steps": sections[-1].end, "stage": plan.standing.number}
        layout["stages"] = [{"name": s.name, "first": s.first, "end": s.end} for s in sections]
    return layout


def _settled(plan: Plan) -> tuple[str, ...]:
    """Sentences for the stage that begins, and what was changed or chosen."""
    title = plan.standing.title if plan.standing else ""
    reported = plan.resumed.reported if plan.resumed else (plan.shuffle,)
    return tuple(filter(None, (title and f"{title[0].upper()}{title[1:]}.", *reported)))


def _build_engine(plan: Plan) -> tuple[Engine, ShardDataset[Any], Arithmetic, InitReport | None]:
    """Engine and data set, what a pair costs, and what the weights started from."""
    config, start, folder = plan.config, plan.start, plan.folder
    tokenizer = prepare_tokenizer(config.data, config.model.text, config.task, folder, plan.mixture, start, plan.group)
    classes = class_names(config.task.name, folder / TOKENIZER)
    model, weights, beginning = build_starting_model(config.blueprint, tokenizer, start, folder, len(classes))
    dataset = build_dataset(config.blueprint, config.data, plan.mixture, tokenizer, model, classes)
    parameters = count_parameters(model)
    ds_config = plan.resolve(parameters)
    if is_compiled(config.train, ds_config):
        dataset.captions.rounding = COARSE
    arithmetic = Arithmetic.of(model, config.train.freeze, ds_config)

    def settle() -> dict[str, Any]:
        if config.train.micro_batch != "auto":
            return ds_config
        pairs = find_micro_batch(config.train, config.objectives, config.optim, model, dataset, ds_config, start)
        return plan.resolve(parameters, pairs)

    engine = parallelize(
        model,
        ds_config,
        settle,
        train=config.train,
        kernels=config.kernels,
        optim=config.optim,
        objectives=config.objectives,
        seed=config.run.seed,
        weights=weights,
        frozen_until=plan.frozen_until,
    )
    return engine, dataset, arithmetic, beginning


def _claim(plan: Plan, engine: Engine) -> tuple[Start, TrainState, FencingToken]:
    """Fill the engine if a run is resumed, and claim the next attempt; returns the start as it turned out to be."""
    start, resumed, mixture = plan.start, plan.resumed, plan.mixture
    data = mixture.fingerprint, mixture.selection
    state = TrainState(0, 0, plan.config.run.seed, data[0], frozen=plan.config.train.freeze, selection=data[1])

    def restore(start: Start) -> tuple[Start, TrainState]:
        return restore_start(engine, plan.folder, start, data, plan.begins_stage)

    if resumed:
        start, state = restore(start)
    attempt = FencingToken(plan.folder, plan.mirror, start.resumes and start.own, plan.group)
    if resumed and start.checkpoint and start.own:
        if not dist.as_rank_0(start.checkpoint.is_dir):  # an earlier attempt, alive until now, may have deleted it
            start, state = restore(start)
        assert start.checkpoint
        make_latest(start.checkpoint)  # what a bad step goes back to
    if plan.standing:
        state = plan.standing.enter(state, mixture)
    if resumed and resumed.alters_loss:  # the losses before are no measure of those to come
        state = replace(state, recent_losses=())
    return start, state, attempt


def _warnings(plan: Plan, dataset: ShardDataset[Any], micro_batch: int) -> list[str]:
    """What a person should know about a run that begins or is resumed."""
    config = plan.config
    found = unused(plan.content, plan.names[0])
    steps = plan.standing.sections[-1].end if plan.standing else plan.steps[0]
    batch, rate = config.train.global_batch, plan.learning_rate
    meant = find_warnings(config.data, config.task, config.eval, plan.mixture, batch, steps, rate)
    found += [warning for _, warning in meant]
    if not config.task.is_labelled:
        slower = groups_warning(config.objectives, config.train.global_batch, replicas.world(), micro_batch)
        found += [slower] if slower else []
    sentences = [f"warning: {warning}" for warning in found]
    if not plan.start.resumes and (cut := truncation_warning(dataset)):
        sentences.append(cut)
    return sentences
