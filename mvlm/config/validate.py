"""What the values of a run's configuration may be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mvlm.config.schema import Config, Model
from mvlm.errors import Mistakes

LAST_STEP = 99_999_999
"""The last that the name of a checkpoint's folder has room for."""

SIGMOID_HAS_ITS_OWN = "left out if objectives.contrastive = 'sigmoid', whose scale begins at 10 and has no bounds"
AT_LEAST_ONE = {
    "objectives": ("text_mask_minimum", "image_mask_block"),
    "model": ("cross_depth", "decoder_depth", "cross_heads", "contrastive_width", "image_size"),
    "data": ("shuffle_block", "shuffle_window", "prefetch"),
    "checkpoint": ("keep",),
    "log": ("every",),
    "task": ("answer_minimum",),
    "eval": ("batch",),
}
NOT_NEGATIVE = {
    "objectives": ("image", "text", "itc", "itm", "text_mask_random"),
    "model": ("cross_init_std",),
    "data": ("workers", "tolerance", "shuffle_shards", "cache_gb", "patience"),
    "optim": ("encoder_lr", "clip", "weight_decay", "warmup_epochs"),
    "train": ("steps", "pairs", "time_limit", "max_skipped"),
    "checkpoint": ("every", "keep_every"),
    "log": ("pictures",),
    "eval": ("rerank", "limit", "patience"),
}

Requirement = tuple[bool, str, str]
"""Whether it is met, the key that it is about, and what its value must be."""


def check_ranges(config: Config, where: str, mistakes: Mistakes) -> None:
    """Find values that no run could work with, each on its own; `where` names the file in the message."""
    for holds, name, wanted in (*requirements(config), *_of_own_numbers(config)):
        if not holds:
            mistakes.add(f"{where}: {name} is {_value(config, name)!r}: it must be {wanted}.")


def requirements(config: Config) -> Iterator[Requirement]:
    """Requirements worded alike for every configuration; of two on one key, the second says more."""
    for table, keys in AT_LEAST_ONE.items():
        yield from ((_value(config, f"{table}.{key}") >= 1, f"{table}.{key}", "1 or more") for key in keys)
    for table, keys in NOT_NEGATIVE.items():
        yield from ((0 <= _value(config, f"{table}.{key}") < math.inf, f"{table}.{key}", "0 or more") for key in keys)
    for name in ("optim.lr", "optim.eps", "train.hang_minutes", "eval.memory_gb", "eval.share"):
        yield 0 < _value(config, name) < math.inf, name, "above 0"
    yield bool(config.run.dir.strip()), "run.dir", "the name of a folder"
    for name in ("model.vision", "model.vision_weights", "model.text", "model.text_weights"):
        yield bool(_value(config, name).strip()), name, "a name"
    yield from _of_objectives(config)
    yield from _of_model(config)
    yield from _of_data(config)
    yield from _of_optimizer(config)
    yield from _of_training(config)
    yield from _of_evaluation(config)
    mirror, peers = config.checkpoint.mirror, config.checkpoint.peers
    yield not mirror or "://" in mirror, "checkpoint.mirror", "a URL, such as s3://bucket/runs/mine"
    yield peers == 0 or (peers == 1 and bool(mirror)), "checkpoint.peers", "0, or 1 with a checkpoint.mirror"


def _of_own_numbers(config: Config) -> Iterator[Requirement]:
    """Requirements worded with the configuration's own numbers, or of some configurations alone."""
    objectives, train, data = config.objectives, config.train, config.data
    matched = objectives.itm and not config.task.is_labelled
    countable = min(train.global_batch, objectives.itm_group) >= 1
    grouped = not matched or not countable or objectives.group(train.global_batch) >= 2
    yield grouped, "train.global_batch", f"divisible by some number from 2 to {objectives.itm_group}, for ITM's groups"
    if objectives.contrastive == "sigmoid":
        for field in ("temperature", "temperature_min", "temperature_max"):
            yield getattr(config.model, field) == getattr(Model(), field), f"model.{field}", SIGMOID_HAS_ITS_OWN
    entries = len(data.train)
    yield len(data.weights) in (0, entries), "data.weights", f"as long as data.train, {entries}, or empty"
    conditions = f"one condition, or as many as data.train has entries, {entries}"
    yield len(data.where) in (0, 1, entries), "data.where", conditions
    yield train.steps <= LAST_STEP, "train.steps", f"at most {LAST_STEP}, which a checkpoint's name has room for"


def _of_objectives(config: Config) -> Iterator[Requirement]:
    objectives = config.objectives
    for name in ("objectives.image_mask_ratio", "objectives.text_mask_ratio"):
        yield 0 < _value(config, name) < 1, name, "above 0 and below 1"
    extra = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in objectives.extra.values())
    yield extra, "objectives.extra", "a table of weights, each 0 or more"
    yield objectives.itm_group >= 2, "objectives.itm_group", "2 or more, for a negative to exist"
    shown = objectives.text_mask_token
    shares = shown >= 0 and shown + objectives.text_mask_random <= 1
    yield shares, "objectives.text_mask_token", "a share; token + random at most 1"
    is_aligned = bool(objectives.itc or objectives.itm or objectives.extra)
    is_read = objectives.reconstruct_from == "other" or is_aligned or bool(objectives.image and objectives.text)
    wanted = "'other' if only one modality has a loss, or nothing reads the other"
    yield is_read, "objectives.reconstruct_from", wanted
    hidden = objectives.hide == "one" or objectives.reconstruct_from == "other"
    yield hidden, "objectives.hide", "'one' if objectives.reconstruct_from = 'self', which never shows the other"


def _of_model(config: Config) -> Iterator[Requirement]:
    lowest, highest = config.model.temperature_min, config.model.temperature_max
    yield 0 < lowest <= highest < math.inf, "model.temperature_min", "above 0 and at most temperature_max"
    inside = lowest <= config.model.temperature <= highest
    yield inside, "model.temperature", "between temperature_min and temperature_max"
    yield 0 <= config.model.dropout < 1, "model.dropout", "at least 0 and below 1"


def _of_data(config: Config) -> Iterator[Requirement]:
    data = config.data
    yield data.text_length >= 3, "data.text_length", "3 or more"
    yield all(0 < weight < math.inf for weight in data.weights), "data.weights", "numbers above 0"
    smallest, largest = data.crop_scale
    yield 0 < smallest <= largest <= 1, "data.crop_scale", "two areas, 0 < smallest <= largest <= 1"
    chosen = data.caption == "draw" or data.epoch == "images"
    yield chosen, "data.caption", "left out unless data.epoch = 'images', as an epoch of pairs draws every caption"
    whole = not data.shuffle_shards or data.shuffle != "global"
    yield whole, "data.shuffle_shards", "0 if data.shuffle = 'global', which shuffles no whole shards"
    operations, magnitude = data.randaugment
    yield operations >= 0 and 0 <= magnitude <= 10, "data.randaugment", "[operations, magnitude of 10]"


def _of_optimizer(config: Config) -> Iterator[Requirement]:
    optim = config.optim
    yield all(0 <= beta < 1 for beta in optim.betas), "optim.betas", "two numbers, at least 0 and below 1"
    yield 0 <= optim.momentum < 1, "optim.momentum", "at least 0 and below 1"
    yield 0 <= optim.floor <= 1, "optim.floor", "a share of the peak"
    for name in ("optim.warmup_steps", "optim.decay_steps"):
        yield _value(config, name) >= -1, name, "-1 or more"
    warms_up = optim.warmup_steps > 0 or optim.warmup_steps < 0 < optim.warmup_epochs
    wanted = "another without a warm-up, whose length sets how fast the root falls"
    yield optim.schedule != "inverse_sqrt" or warms_up, "optim.schedule", wanted
    yield 0 < optim.layer_decay <= 1, "optim.layer_decay", "above 0 and at most 1"


def _of_training(config: Config) -> Iterator[Requirement]:
    train = config.train
    length = train.steps > 0 or train.pairs > 0 or 0 < train.epochs < math.inf
    yield length, "train.epochs", "above 0 if neither train.steps nor train.pairs is given"
    yield train.global_batch >= 2, "train.global_batch", "2 or more"
    yield train.micro_batch == "auto" or train.micro_batch >= 0, "train.micro_batch", "0 or more, or 'auto'"
    yield train.spike == 0 or 1 < train.spike < math.inf, "train.spike", "0 (off) or above 1"
    yield 0 <= train.recompute <= 1, "train.recompute", "a share of the blocks, 0 to 1"
    yield 0 <= train.audit <= 1, "train.audit", "a share of the micro-batches, 0 to 1"
    yield 0 <= train.ema < 1, "train.ema", "at least 0 and below 1"


def _of_evaluation(config: Config) -> Iterator[Requirement]:
    evaluation, held_out = config.eval, bool(config.data.eval)
    yield evaluation.every >= -1, "eval.every", "-1 or more"
    compared = not evaluation.select or held_out
    yield compared, "eval.select", "left out if data.eval names no held-out shards"
    for name in ("eval.foils", "eval.classes"):
        beside = not _value(config, name) or (held_out and not config.task.is_labelled)
        yield beside, name, "left out if data.eval names nothing, or the task chooses among answers"
    counted = not evaluation.patience or (bool(evaluation.select) and evaluation.every >= 0)
    yield counted, "eval.patience", "0 without eval.select, or if eval.every is -1"


def _value(config: Config, name: str) -> Any:
    table, key = name.split(".")
    return getattr(getattr(config, table), key)
