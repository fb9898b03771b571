"""A run's configuration from a strict TOML file and `key=value` overrides, and back.

An unknown key, a wrong type or a value out of range is a `UserError` naming the key and the nearest known name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvlm.config.image_encoder import written_out
from mvlm.config.parameters import present_name
from mvlm.config.places import expanded
from mvlm.config.schema import OBJECTIVES_OF, Config
from mvlm.config.shipped import find_file
from mvlm.config.toml import apply_override, as_toml, build, read_tables
from mvlm.config.validate import check_ranges
from mvlm.errors import Mistakes, UserError

OTHER_NAMES = {
    "batch_size": "train.global_batch",
    "eval_steps": "eval.every",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_checkpointing": "train.recompute",
    "learning_rate": "optim.lr",
    "logging_steps": "log.every",
    "max_steps": "train.steps",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "num_workers": "data.workers",
    "output_dir": "run.dir",
    "per_device_train_batch_size": "train.micro_batch",
    "report_to": "log.wandb",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "torch_compile": "train.compile",
}
"""Keys by what other trainers call them, as in transformers' `TrainingArguments`."""

DEEPSPEED_NAMES = {
    name: f"{key} of the DeepSpeed configuration"
    for name, key in {
        "bf16": "bf16.enabled",
        "fp16": "fp16.enabled",
        "precision": "bf16.enabled",
        "zero_stage": "zero_optimization.stage",
    }.items()
}
"""What other trainers set among their own keys, and DeepSpeed's JSON sets here."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run TOML, a file or a shipped one's name, and apply `table.key=value` overrides, values in TOML syntax or
    bare strings."""
    mistakes = Mistakes()
    config = read_config(path, overrides, mistakes)
    mistakes.settle()
    return config


def read_config(path: str | Path, overrides: Iterable[str], mistakes: Mistakes) -> Config:
    """The same as far as it can be read: mistakes are gathered, and defaults take their place.

    Raises:
        UserError: the file is not TOML.
    """
    return _checked(_read_tables(path, overrides, mistakes), str(path), mistakes)


def given_keys(path: str | Path, overrides: Iterable[str]) -> frozenset[str]:
    """The keys, as `table.key`, that a run TOML or its overrides set; all others have their defaults."""
    tables = _read_tables(path, overrides, Mistakes())
    return frozenset(f"{name}.{key}" for name, table in tables.items() if isinstance(table, dict) for key in table)


STAGE = "stage"
"""The array of tables that changes the configuration along a run."""

LENGTHS = ("steps", "pairs", "epochs")
"""Keys of `[train]`, of which a stage gives one."""

YOUNGER_KEYS: dict[str, Any] = {
    "data.where": [],
    "data.patience": 0.0,
    "data.epoch": "images",
    "data.shuffle": "blocks",
    "data.randaugment_kind": "same_hue",
    "model.text_pool": "cls",
    "objectives.contrastive": "softmax",
    "objectives.reconstruct_from": "other",
    "objectives.itc_exchange": "blocks",
    "optim.name": "adamw",
    "optim.momentum": 0.95,
    "optim.schedule": "cosine",
    "optim.decay_steps": -1,
    "train.pairs": 0,
    "train.checksums": False,
    "train.audit": 0.0,
    "checkpoint.peers": 0,
    "eval.select": "",
    "eval.select_lower": False,
    "eval.patience": 0,
    "eval.foils": [],
    "eval.classes": "",
    "kernels.fusion": "auto",
    "kernels.views": "auto",
    "kernels.residual_norm": "auto",
}
"""For each key (`table.key`) younger than the oldest run, the value with which a run does what it did before the key.

A stored configuration has all keys of the version that wrote it, so one that lacks such a key means this value,
whatever the default is or becomes.
"""

RETIRED_KEYS = ("kernels.word_loss",)
"""Keys that earlier versions stored and that nothing reads any more."""


def load_stored_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration that a run has stored, with all the keys that its version knew, and apply `table.key=value`
    overrides.

    Raises:
        UserError: it is missing or damaged.
    """
    tables = read_tables(path, "run configuration")
    tables.pop(STAGE, None)
    for name, value in YOUNGER_KEYS.items():
        table, key = name.split(".")
        tables.setdefault(table, {}).setdefault(key, value)
    for name in RETIRED_KEYS:
        table, key = name.split(".")
        tables.get(table, {}).pop(key, None)
    for override in overrides:
        apply_override(tables, override)
    return config_from_dict(tables, str(path))


def read_stages(path: str | Path) -> list[dict[str, Any]]:
    """The `[[stage]]` tables of a run TOML, as they stand there; raises `UserError` if `stage` is something else."""
    tables = read_tables(find_file(path, "configs"), "run configuration").get(STAGE, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: stage must be tables, each under a line [[stage]]: write it so.")
    return tables


def _read_tables(path: str | Path, overrides: Iterable[str], mistakes: Mistakes) -> dict[str, Any]:
    tables = read_tables(find_file(path, "configs"), "run configuration")
    stages = tables.pop(STAGE, ())  # of mvlm/config/stages.py
    for override in overrides:
        with mistakes.gathered():
            apply_override(tables, override)
            _require_effect(override, bool(stages), path)
    return tables


def _require_effect(override: str, has_stages: bool, where: str | Path) -> None:
    """Raise `UserError` if an override gives a length although every stage of the run has its own."""
    name = override.partition("=")[0]
    if has_stages and name in [f"train.{key}" for key in LENGTHS]:
        raise UserError(f"{override} would change nothing: each [[stage]] of {where} has its own length; set it there.")


def config_from_dict(tables: dict[str, Any], where: str) -> Config:
    """Build and check a `Config`; `where` names the file in error messages."""
    mistakes = Mistakes()
    config = _checked(tables, where, mistakes)
    mistakes.settle()
    return config


def _checked(tables: dict[str, Any], where: str, mistakes: Mistakes) -> Config:
    config = build(Config, tables, where, "", mistakes, DEEPSPEED_NAMES | OTHER_NAMES | _full_names())
    data = dataclasses.replace(config.data, train=expanded(config.data.train), eval=expanded(config.data.eval))
    config = dataclasses.replace(config, data=data, model=written_out(config.model))
    check_ranges(config, where, mistakes)
    own = OBJECTIVES_OF.get(config.task.name, ())
    if own and not any(getattr(config.objectives, name) for name in own):
        mistakes.add(f"{where}: every weight in [objectives] is 0, so there is nothing to learn; raise one.")
    foreign: dict[str, Any] = {name: 0.0 for name in OBJECTIVES_OF["pretrain"] if name not in own}
    if not own:
        foreign["extra"] = {}
    train = dataclasses.replace(config.train, freeze=tuple(map(present_name, config.train.freeze)))
    return dataclasses.replace(config, train=train, objectives=dataclasses.replace(config.objectives, **foreign))


def _full_names() -> dict[str, str]:
    """Each key's `table.key`; of a key that two tables have, the first."""
    return {name.partition(".")[2]: name for name in reversed(flat(Config()))}


def require_training_data(config: Config, where: str) -> None:
    """Raise `UserError` if `data.train` names nothing; `where` names the TOML."""
    if not config.data.train:
        raise UserError(f"{where} names no data.train: add data.train=SHARDS, made by `mvlm-data shard`.")


def flat(config: Config) -> dict[str, Any]:
    """Every value by its `table.key`."""
    return {
        f"{table.name}.{field.name}": getattr(getattr(config, table.name), field.name)
        for table in dataclasses.fields(config)
        for field in dataclasses.fields(getattr(config, table.name))
    }


def dump_config(config: Config) -> str:
    """The configuration as TOML that `load_config` reads back to an equal `Config`."""
    lines = []
    for table in dataclasses.fields(config):
        lines.append(f"[{table.name}]")
        section = getattr(config, table.name)
        lines += [f"{f.name} = {as_toml(getattr(section, f.name))}" for f in dataclasses.fields(section)]
        lines.append("")
    return "\n".join(lines)
