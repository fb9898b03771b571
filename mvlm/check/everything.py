"""Checks everything that a run needs to start or resume, in the order in which training would meet it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mvlm.check import checkpoints, configuration, models, shards
from mvlm.check.reading import Given
from mvlm.check.report import Report
from mvlm.checkpoint.integrity import check_continuity
from mvlm.checkpoint.state import TrainState
from mvlm.config.schema import Config
from mvlm.data.shards.mixture import Mixture, held_out, training_mixture
from mvlm.errors import UserError
from mvlm.evaluate.training import Evaluator
from mvlm.training.checkpoint.resume import Start
from mvlm.training.compilation import is_compiled
from mvlm.training.fit.stages import Standing, settle_stages
from mvlm.training.logging.trackers import require_installed
from mvlm.training.schedule import learning_rate, schedule_steps
from mvlm.training.warnings import find_warnings
from mvlm.training.zero.config import RunSide, resolve
from mvlm.training.zero.fill import low_precision
from mvlm.training.zero.json_file import tensor_ranks, unused
from mvlm.training.zero.json_keys import check_keys
from mvlm.training.zero.start import why_not_computed


def check_given(report: Report, given: Given, world: int, deep: bool) -> None:
    """Check that a run could start from what was read.

    Args:
        world: ranks that will be launched.
        deep: also compare every checkpoint with its hashes, which reads it in full.
    """
    config, content, mixture = given.config, given.content, given.mixture
    if content is not None and given.json:
        with report.judged("deepspeed"):
            check_keys(content, given.json)
    if config is None:
        return
    start, state = checkpoints.check_start(report, config, deep)
    if given.mistaken:
        report.unknown(
            "toml", "The layout, the model and the DeepSpeed JSON's values are checked once the TOML is right."
        )
        return
    standing = _settle_stages(report, given, start) if start else None
    if standing:
        config = standing.config
        mixture = training_mixture(config.data, config.task.corpus)
    else:
        config = checkpoints.settle_config(report, config, given.keys, start)
    split = tensor_ranks(content or {})
    replicas = configuration.check_layout(report, config, world, split)
    checkpoints.check_mirror(report, config)
    if standing and state and start and start.checkpoint and mixture:
        if not standing.begins:
            with report.judged("checkpoint"):
                check_continuity(start.checkpoint, state, mixture.fingerprint, mixture.selection)
    elif start and state and start.checkpoint and mixture:
        checkpoints.check_continuing(report, config, start.checkpoint, state, mixture)
    elif mixture:
        config = shards.check_shuffle(report, config, mixture)
    parameters = models.check_model(report, config, start, mixture, deep, split) if start else 0
    if standing and start:
        _check_coming(report, standing, start, given, world, split)
    if parameters:
        checkpoints.check_room(report, config, parameters)
        checkpoints.check_memory(report, config, parameters, replicas * split or world)
    configuration.check_kernels(report, config)
    with report.judged("log"):
        require_installed(config.log)
    if given.json is None:
        report.unknown("deepspeed", "No DeepSpeed JSON was given: --deepspeed_config FILE compares it with the TOML.")
    elif content is not None:
        own = None if standing else state  # a stage counts steps from its own beginning
        _check_deepspeed(report, config, content, (given.json, given.toml), replicas, mixture, parameters, own)
    if mixture:
        _warn(report, config, content, given.json or "", mixture, standing)
    _check_measured(report, config)


def _check_measured(report: Report, config: Config) -> None:
    """Check what is evaluated alongside `data.eval`, and that `eval.select` is among the metrics."""
    if not config.data.eval or config.eval.every < 0:
        return
    try:
        held_out(config.data, config.task.corpus)
    except UserError:  # already reported
        return
    with report.judged("eval"):
        Evaluator(config.data, config.task, config.objectives, config.model.image_size, config.eval, pictures=0)


def _settle_stages(report: Report, given: Given, start: Start) -> Standing | None:
    """Settle and report where the run stands among its stages; None if it has none, or they are mistaken."""
    config, stages = given.config, given.stages
    if config is None or stages is None:
        return None
    with report.judged("stages"):
        tables = () if stages.is_all else stages.tables
        standing = settle_stages(config, given.keys, tables, given.toml, start, Path(config.run.dir))
        for number, section in enumerate(standing.sections if standing else ()):
            assert standing
            report.right("stages", f"{standing.stages.title(number)}: steps {section.first:,} to {section.end:,}.")
        for sentence in standing.resumed.reported if standing and standing.resumed else ():
            report.right("checkpoint", sentence)
        return standing
    return None


def _check_coming(report: Report, standing: Standing, start: Start, given: Given, world: int, split: int) -> None:
    """Check the layout, the model, the evaluations and the DeepSpeed JSON of the stages after the one that the run
    begins or resumes in."""
    for number in range(standing.number + 1, len(standing.stages)):
        coming, parameters = standing.stages.config(number), 0
        replicas = configuration.check_layout(report, coming, world, split)
        with report.judged("log"):
            require_installed(coming.log)
        with report.judged("data"):
            mixture = training_mixture(coming.data, coming.task.corpus)
            parameters = models.check_model(report, coming, start, mixture, False, split)
        if replicas and given.json and given.content is not None:
            names = given.json, given.toml
            run = RunSide(names, coming.run.dir, coming.train, coming.optim, replicas, (None, None), parameters)
            with report.judged("deepspeed"):
                is_compiled(coming.train, resolve(given.content, run))
        _check_measured(report, coming)


def _warn(
    report: Report,
    config: Config,
    content: dict[str, Any] | None,
    json_name: str,
    mixture: Mixture,
    standing: Standing | None,
) -> None:
    for sentence in unused(content or {}, json_name):
        report.warning("deepspeed", sentence)
    with report.judged("toml"):
        if standing:
            rate, steps = standing.schedule()[0], standing.sections[-1].end
        else:
            steps, warmup = schedule_steps(config.train, config.optim, mixture.per_epoch)
            rate = learning_rate(config.train, config.optim, mixture.per_epoch, (steps, warmup))
        with contextlib.suppress(UserError):  # of data.eval, already reported
            batch = config.train.global_batch
            for topic, sentence in find_warnings(config.data, config.task, config.eval, mixture, batch, steps, rate):
                report.warning(topic, sentence)


def _check_deepspeed(
    report: Report,
    config: Config,
    content: dict[str, Any],
    names: tuple[str, str],
    replicas: int,
    mixture: Mixture | None,
    parameters: int,
    state: TrainState | None,
) -> None:
    total: int | None = None
    warmup: int | None = None
    if mixture:
        with report.judged("checkpoint"):
            total, warmup = schedule_steps(config.train, config.optim, mixture.per_epoch, state)
    if not replicas:
        report.unknown("deepspeed", f"{names[0]} is compared with the TOML once the batch can be divided.")
        return
    train, optim = config.train, config.optim
    run = RunSide(names, config.run.dir, train, optim, replicas, (total, warmup), parameters)
    with report.judged("deepspeed"):
        resolved = resolve(content, run)
        stage = resolved["zero_optimization"]["stage"]
        is_compiled(train, resolved)
        low = low_precision(resolved)
        if low and (why := why_not_computed(low)):
            report.unknown("deepspeed", f"{names[0]} {why}: start the run on a machine that can.")
        else:
            here = f"{_precision(resolved)} on this machine"
            report.right("deepspeed", f"{names[0]} agrees with the TOML: ZeRO stage {stage}, {here}.")
        if mixture is None:
            report.unknown("deepspeed", f"The steps of the scheduler that {names[0]} may name depend on the shards.")


def _precision(resolved: dict[str, Any]) -> str:
    autocast = (resolved.get("torch_autocast") or {}).get("enabled")
    return low_precision(resolved) or ("torch_autocast" if autocast else "fp32")
