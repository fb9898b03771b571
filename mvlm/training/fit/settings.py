"""What becomes of the configuration when a run is resumed: a key keeps its value, changes with a notice, or is refused.

The values are those stored with the checkpoint. What the run TOML or an override sets to something else is a change;
what they leave at its default is not, so that no default of a later version alters a run that has begun.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mvlm.checkpoint.description import CONFIG, DEEPSPEED, described_in
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.state import TrainState
from mvlm.config.load import flat, load_stored_config
from mvlm.config.schema import Config
from mvlm.config.toml import as_toml
from mvlm.config.validate import check_ranges
from mvlm.data.loading.sampler import AUTO
from mvlm.errors import Mistakes, UserError
from mvlm.training.checkpoint.resume import Start
from mvlm.training.zero.json_file import leaves


class OnResume(Enum):
    """What a change of a key does; the value is why it is refused, if it is."""

    APPLIES = ""  # from the next step on
    PLACE = "place"  # says which run is meant: always as it is given now
    ORDER = "order"  # applies from the next epoch on, by mvlm/data/loading/sampler.py
    STREAM = "the order of its samples, masks and negatives follows from it"
    MODEL = "its weights are of that model"
    BEGINNING = "it counts only when a run begins"
    OPTIMIZER = "its moments are of that optimizer"
    FROZEN = "it has no optimizer moments of what was frozen"


_APPLIES = {
    "data": "train eval text_length caption shared_view crop_scale flip randaugment randaugment_kind cache cache_gb "
    "workers worker_mode prefetch tolerance patience",
    "model": "dropout temperature_min temperature_max",
    "objectives": "image text itc itm image_mask_ratio image_mask_block image_mask_rounding text_mask_ratio "
    "text_mask_minimum text_mask_token text_mask_random hide reconstruct_from normalized_targets alignment_inputs "
    "exclude_duplicates itc_exchange itm_group itm_negatives",
    "optim": "lr encoder_lr weight_decay betas eps momentum clip schedule decay_steps warmup_epochs warmup_steps "
    "floor layer_decay",
    "train": "epochs steps pairs global_batch micro_batch deterministic time_limit spike max_skipped checksums "
    "audit hang_minutes compile recompute ema",
    "kernels": "fusion views attention linear gelu_linear layer_norm residual_norm packed_attention patch_l1 "
    "log_sum_exps contrastive negatives optimizer",
    "checkpoint": "every keep keep_every",
    "log": "every tensorboard wandb mlflow pictures",
    "eval": "every select select_lower patience foils classes batch rerank limit memory_gb share",
}
_ORDER = {"data": "shuffle shuffle_block shuffle_window shuffle_shards"}
_PLACE = {"run": "dir", "checkpoint": "resume mirror peers"}
_STREAM = {"run": "seed", "data": "epoch weights where"}
_MODEL = {
    "data": "tokenizer vocabulary",
    "model": "vision vision_args image_size text text_args text_pool cross_depth decoder_depth cross_heads "
    "cross_norm contrastive_width tie_classifier",
    "objectives": "contrastive extra image_masking",
    "task": "name answer_minimum",
}
_BEGINNING = {
    "model": "vision_weights text_weights cross_init_std temperature classifier_init",
    "checkpoint": "init",
}
_OPTIMIZER = {"optim": "name"}
_FROZEN = {"train": "freeze"}

ON_RESUME: dict[str, OnResume] = {
    f"{table}.{key}": kind
    for kind, tables in (
        (OnResume.APPLIES, _APPLIES),
        (OnResume.ORDER, _ORDER),
        (OnResume.PLACE, _PLACE),
        (OnResume.STREAM, _STREAM),
        (OnResume.MODEL, _MODEL),
        (OnResume.BEGINNING, _BEGINNING),
        (OnResume.OPTIMIZER, _OPTIMIZER),
        (OnResume.FROZEN, _FROZEN),
    )
    for table, keys in tables.items()
    for key in keys.split()
}
"""Every key of the configuration, as `table.key`."""

HIDDEN_BY = {
    "train.pairs": ("train.steps",),
    "train.epochs": ("train.steps", "train.pairs"),
    "optim.warmup_epochs": ("optim.warmup_steps",),
}
"""Keys that have no effect unless these others have their defaults."""

ALTERS_LOSS = ("data.", "model.", "objectives.", "train.global_batch")
"""Prefixes of keys whose change may move the loss at once."""

DERIVED = ("train_batch_size", "train_micro_batch_size", "gradient_", "optimizer.", "scheduler.", "steps_per_print")
"""Keys of the DeepSpeed JSON that follow from the run's own configuration, or do not affect training."""


@dataclass(frozen=True)
class Resumed:
    """The configuration that a run is resumed with.

    Attributes:
        state: of the checkpoint.
        reported: a sentence for what changed, and one for what is kept though nothing sets it any more.
        alters_loss: whether a change may move the loss at once, so that what counts as a spike must be learned anew.
    """

    config: Config
    state: TrainState
    reported: tuple[str, ...]
    alters_loss: bool


def resume_config(config: Config, given: frozenset[str], start: Start) -> Resumed:
    """The configuration stored with a checkpoint, with the changes that a run TOML and overrides make to it.

    Args:
        config: as the run TOML and the overrides make it.
        given: the keys that they set, of `given_keys`.
        start: one that resumes.

    Raises:
        UserError: a change cannot work, with a sentence for each; or what is stored is missing or damaged.
    """
    assert start.checkpoint
    stored = load_stored_config(described_in(start.checkpoint) / CONFIG)
    mistakes = Mistakes()
    resumed, changed, kept = merge_settings(stored, config, given, start.checkpoint, mistakes)
    _require_effect(resumed, changed, given, mistakes)
    mistakes.settle()
    return Resumed(
        resumed, read_state(start.checkpoint), (*changes(changed), *kept_settings(kept)), alters_loss(changed)
    )


Changed = dict[str, tuple[Any, Any]]
"""By key, a value before and after."""


def merge_settings(
    stored: Config,
    config: Config,
    given: frozenset[str],
    checkpoint: Path,
    mistakes: Mistakes,
    allowed: frozenset[str] = frozenset(),
) -> tuple[Config, Changed, Changed]:
    """The stored configuration with the changes that another makes to it, those changes, and what is kept despite it.

    Args:
        given: the keys of the other one that count.
        checkpoint: for messages.
        allowed: keys that may change here even if they may not elsewhere.
    """
    settings = flat(stored)
    changed, kept = {}, {}
    for key, value in flat(config).items():
        before, kind = settings[key], ON_RESUME[key]
        if value == before or (key == "train.freeze" and set(value) == set(before)):
            continue
        if key == "data.shuffle" and value == AUTO:  # it was settled when the run began
            continue
        if kind is OnResume.PLACE:
            settings[key] = value
            if key in ("checkpoint.mirror", "checkpoint.peers"):
                changed[key] = before, value
        elif key not in given:
            kept[key] = before, value
        elif kind is OnResume.APPLIES or key in allowed:
            settings[key] = value
            changed[key] = before, value
        elif kind is OnResume.ORDER:
            settings[key] = value
        else:
            mistakes.add(_refusal(key, before, value, kind, checkpoint))
    resumed = _config_of(settings)
    check_ranges(resumed, f"What is changed for {checkpoint}", mistakes)
    return resumed, changed, kept


def _require_effect(resumed: Config, changed: Changed, given: frozenset[str], mistakes: Mistakes) -> None:
    """Find changes that have no effect because of keys that are kept from the run."""
    settings, defaults = flat(resumed), flat(Config())
    for key in HIDDEN_BY.keys() & changed.keys():
        hiding = [name for name in HIDDEN_BY[key] if settings[name] != defaults[name]]
        if hiding and given.isdisjoint(hiding):
            mistakes.add(
                f"{key} = {_shown(settings[key])} would change nothing, since the run has {hiding[0]} = "
                f"{_shown(settings[hiding[0]])}: set that, or {hiding[0]} = {_shown(defaults[hiding[0]])} too."
            )


def alters_loss(changed: Changed) -> bool:
    return any(key.startswith(ALTERS_LOSS) for key in changed)


def _config_of(settings: dict[str, Any]) -> Config:
    """From values that are each valid; the inverse of `flat`."""
    config = Config()
    for table in dataclasses.fields(config):
        section = getattr(config, table.name)
        values = {field.name: settings[f"{table.name}.{field.name}"] for field in dataclasses.fields(section)}
        config = dataclasses.replace(config, **{table.name: dataclasses.replace(section, **values)})
    return config


def deepspeed_changes(checkpoint: Path, now: dict[str, Any]) -> tuple[str, ...]:
    """A sentence for what differs from the DeepSpeed JSON stored with a checkpoint; all of it may change."""
    try:
        stored = json.loads((described_in(checkpoint) / DEEPSPEED).read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):  # nothing depends on it
        return ()
    before, after = dict(leaves(stored)), dict(leaves(now))
    keys = [key for key in before | after if not key.startswith(DERIVED) and before.get(key) != after.get(key)]
    return changes({key: (before.get(key), after.get(key)) for key in keys}, " in the DeepSpeed JSON")


def changes(changed: Changed, where: str = "") -> tuple[str, ...]:
    if not changed:
        return ()
    listed = ", ".join(f"{key}: {_shown(before)} -> {_shown(value)}" for key, (before, value) in changed.items())
    return (f"Changed{where} since the checkpoint: {listed}.",)


def kept_settings(kept: Changed) -> tuple[str, ...]:
    if not kept:
        return ()
    listed = ", ".join(f"{key} = {_shown(before)} (default {_shown(value)})" for key, (before, value) in kept.items())
    return (f"Kept from the run, though neither the TOML nor an override sets it: {listed}.",)


def _refusal(key: str, before: Any, value: Any, kind: OnResume, checkpoint: Path) -> str:
    return (
        f"{key} was {_shown(before)} in the run of {checkpoint} and is {_shown(value)} here, which a run cannot change "
        f"({kind.value}): give {_shown(before)} or leave it out, or start a new run.dir with checkpoint.init."
    )


def _shown(value: Any) -> str:
    return "none" if value is None else as_toml(value)
