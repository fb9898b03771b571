"""Everything that a run needs to begin or to go on, in the order in which training would come upon it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from mvlm.check import checkpoints, configuration, models, shards
from mvlm.check.report import Report
from mvlm.config import Config, read_config
from mvlm.data.index import Mixture
from mvlm.errors import Mistakes, UserError
from mvlm.train.blocks import check_stage
from mvlm.train.doubtful import doubts
from mvlm.train.ds_config import resolve
from mvlm.train.ds_json import read_deepspeed_json, refuse_sections
from mvlm.train.ds_keys import check_keys
from mvlm.train.loop import schedule_steps


def check_run(toml: str, overrides: Sequence[str], deepspeed: str | None, world: int, deep: bool) -> Report:
    """All that is wrong, and what is right.

    Args:
        deepspeed: the path of the DeepSpeed JSON.
        world: ranks that will be launched.
        deep: also hold every shard and every checkpoint against its hashes, which reads them in full.
    """
    report, mistakes = Report(), Mistakes()
    config: Config | None = None
    with report.judged("toml"):
        config = read_config(toml, overrides, mistakes)
    report.wrong("toml", *mistakes.sentences)
    content: dict[str, Any] | None = None
    if deepspeed:
        with report.judged("deepspeed"):
            content = read_deepspeed_json(deepspeed)
    if config is None:
        _check_sections_alone(report, content, deepspeed)
        return report
    if mistakes.sentences:
        _check_what_does_not_depend(report, config, content, deepspeed, deep)
        return report
    given = f", with {len(overrides)} set behind the command" if overrides else ""
    report.right("toml", f"All keys of {toml} are known and their values possible{given}.")
    ranks = configuration.check_layout(report, config, world)
    mixture = shards.check_training(report, config, toml, deep)
    shards.check_evaluation(report, config, deep)
    start, state = checkpoints.check_start(report, config, deep)
    checkpoints.check_mirror(report, config)
    if start and state and start.checkpoint and mixture:
        checkpoints.check_continuing(report, config, start.checkpoint, state, mixture)
    parameters = models.check_model(report, config, start, mixture, deep) if start else 0
    if parameters:
        checkpoints.check_room(report, config, parameters)
    configuration.check_kernels(report, config)
    if deepspeed is None:
        report.unknown("deepspeed", "No DeepSpeed JSON was given: --deepspeed_config FILE compares it with the TOML.")
    elif content is not None:
        _check_deepspeed(report, config, content, (deepspeed, toml), ranks, mixture, parameters)
    if mixture:
        _warn(report, config, content, deepspeed or "", mixture)
    return report


def _warn(report: Report, config: Config, content: dict[str, Any] | None, json_name: str, mixture: Mixture) -> None:
    total, _ = schedule_steps(config, mixture.per_epoch)
    with contextlib.suppress(UserError):  # of data.eval, which has been told
        for topic, sentence in doubts(config, content, json_name, mixture, total):
            report.warning(topic, sentence)


def _check_sections_alone(report: Report, content: dict[str, Any] | None, deepspeed: str | None) -> None:
    if content is not None and deepspeed:
        with report.judged("deepspeed"):
            refuse_sections(content, deepspeed)
        with report.judged("deepspeed"):
            check_keys(content, deepspeed)


def _check_what_does_not_depend(
    report: Report, config: Config, content: dict[str, Any] | None, deepspeed: str | None, deep: bool
) -> None:
    """What can be told while keys of the TOML are wrong, and defaults stand in their place."""
    for folder in (*config.data.train, *config.data.eval):
        shards.check_corpus(report, config, folder, deep)
    checkpoints.check_start(report, config, deep)
    _check_sections_alone(report, content, deepspeed)
    report.unknown("toml", "The layout, the model and the DeepSpeed JSON's values are checked when the TOML is right.")


def _check_deepspeed(
    report: Report,
    config: Config,
    content: dict[str, Any],
    names: tuple[str, str],
    ranks: int,
    mixture: Mixture | None,
    parameters: int,
) -> None:
    total, warmup = schedule_steps(config, mixture.per_epoch) if mixture else (None, None)
    if not ranks:
        _check_sections_alone(report, content, names[0])
        report.unknown("deepspeed", f"{names[0]} is compared with the TOML when the batch can be divided.")
        return
    try:
        resolved = resolve(content, config, names, ranks, total, warmup, parameters)
    except UserError as error:
        report.wrong("deepspeed", *error.sentences)
        return
    stage = resolved["zero_optimization"]["stage"]
    with report.judged("deepspeed"):
        check_stage(config, stage)
        report.right(
            "deepspeed", f"{names[0]} goes with the TOML: ZeRO stage {stage}, {_precision(resolved)} on this machine."
        )
    if mixture is None:
        report.unknown("deepspeed", f"The steps of the scheduler that {names[0]} may name depend on the shards.")


def _precision(resolved: dict[str, Any]) -> str:
    names = [name for name in ("fp16", "bf16") if (resolved.get(name) or {}).get("enabled")]
    if (resolved.get("torch_autocast") or {}).get("enabled"):
        names.append("torch_autocast")
    return names[0] if names else "fp32"
