"""Checks that need no torch: a run's TOML, its DeepSpeed JSON and its shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.check import shards
from mvlm.check.report import Report
from mvlm.checkpoint.description import stages_over
from mvlm.config.load import given_keys, read_config, read_stages
from mvlm.config.schema import Config
from mvlm.config.stages import Stages, make_stages
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import Mistakes
from mvlm.training.zero.json_file import read_deepspeed_json, refuse_sections


@dataclass(frozen=True)
class Given:
    """What a run would start from, as far as it could be read.

    Attributes:
        config: None if the TOML cannot be read.
        keys: those that the TOML and the overrides set.
        mistaken: the TOML has mistakes, in whose place `config` has defaults.
        json: path of the DeepSpeed JSON; None if none was given.
        content: of that file; None if it could not be read either.
        mixture: `data.train` of the run's current stage; None if it cannot be opened.
        stages: of the TOML, a single one if it names none; None if they have mistakes.
    """

    toml: str
    config: Config | None
    keys: frozenset[str]
    mistaken: bool
    json: str | None
    content: dict[str, Any] | None
    mixture: Mixture | None
    stages: Stages | None = None


def read_run(report: Report, toml: str, overrides: Sequence[str], deepspeed: str | None, deep: bool) -> Given:
    """Read all of it.

    Args:
        deepspeed: the path of the DeepSpeed JSON.
        deep: compare every shard with its hash.
    """
    mistakes, config, content, mixture, stages = Mistakes(), None, None, None, None
    with report.judged("toml"):
        config = read_config(toml, overrides, mistakes)
    report.wrong("toml", *mistakes.sentences)
    if deepspeed:
        with report.judged("deepspeed"):
            content = read_deepspeed_json(deepspeed)
    if content is not None and deepspeed:
        with report.judged("deepspeed"):
            refuse_sections(content, deepspeed)
    if config and mistakes.sentences:
        for folder in (*config.data.train, *config.data.eval):
            shards.check_corpus(report, config, folder, deep)
    elif config:
        given = f", with {len(overrides)} set on the command line" if overrides else ""
        report.right("toml", f"All keys of {toml} are known, and all values possible{given}.")
        with report.judged("stages"):
            stages = make_stages(config, read_stages(toml), toml)
        count = len(stages or (config,))
        standing = min(stages_over(Path(config.run.dir)), count - 1)
        for number in range(standing + 1, count):
            assert stages
            shards.check_training(report, stages.config(number), toml, deep)
        mixture = shards.check_training(report, stages.config(standing) if stages else config, toml, deep)
        shards.check_evaluation(report, config, deep)
    keys = given_keys(toml, overrides) if config else frozenset()
    return Given(toml, config, keys, bool(mistakes.sentences), deepspeed, content, mixture, stages)
