"""What the values of a run's configuration may be."""

from __future__ import annotations

import math
from typing import Any

from mvlm.config.schema import Config, Model
from mvlm.errors import Mistakes

LAST_STEP = 99_999_999
"""That the name of a checkpoint's folder has room for."""

SIGMOID_HAS_ITS_OWN = "left out where objectives.contrastive = 'sigmoid', whose scale begins at 10 and has no bounds"
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


def check_ranges(config: Config, where: str, mistakes: Mistakes) -> None:
    """Find values that no run could work with, each on its own; `where` names the file in the message."""

    def value(name: str) -> Any:
        section, key = name.split(".")
        return getattr(getattr(config, section), key)

    def require(holds: bool, name: str, wanted: str) -> None:
        if not holds:
            mistakes.add(f"{where}: {name} is {value(name)!r}: it must be {wanted}.")

    for table, keys in AT_LEAST_ONE.items():
        for key in keys:
            require(value(f"{table}.{key}") >= 1, f"{table}.{key}", "1 or more")
    for table, keys in NOT_NEGATIVE.items():
        for key in keys:
            require(0 <= value(f"{table}.{key}") < math.inf, f"{table}.{key}", "0 or more")
    require(bool(config.run.dir.strip()), "run.dir", "the name of a folder")
    model, objectives, optim, train, data = config.model, config.objectives, config.optim, config.train, config.data
    for name in ("objectives.image_mask_ratio", "objectives.text_mask_ratio"):
        require(0 < value(name) < 1, name, "above 0 and below 1")
    extra = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in objectives.extra.values())
    require(extra, "objectives.extra", "a table of weights, each 0 or more")
    require(objectives.itm_group >= 2, "objectives.itm_group", "2 or more, for a negative to exist")
    matched = objectives.itm and not config.task.is_labelled
    grouped = not matched or train.global_batch < 1 or objectives.group(train.global_batch) >= 2
    require(
        grouped, "train.global_batch", f"divisible by some number from 2 to {objectives.itm_group}, for ITM's groups"
    )
    shown = objectives.text_mask_token
    shares = shown >= 0 and shown + objectives.text_mask_random <= 1
    require(shares, "objectives.text_mask_token", "a share; token + random at most 1")
    is_aligned = bool(objectives.itc or objectives.itm or objectives.extra)
    is_read = objectives.reconstruct_from == "other" or is_aligned or bool(objectives.image and objectives.text)
    require(
        is_read, "objectives.reconstruct_from", "other where one modality alone has a loss, or nothing reads the other"
    )
    lowest, highest = model.temperature_min, model.temperature_max
    require(0 < lowest <= highest < math.inf, "model.temperature_min", "above 0 and at most temperature_max")
    inside = lowest <= model.temperature <= highest
    require(inside, "model.temperature", "between temperature_min and temperature_max")
    if objectives.contrastive == "sigmoid":
        for field in ("temperature", "temperature_min", "temperature_max"):
            require(getattr(model, field) == getattr(Model(), field), f"model.{field}", SIGMOID_HAS_ITS_OWN)
    require(0 <= model.dropout < 1, "model.dropout", "at least 0 and below 1")
    require(data.text_length >= 3, "data.text_length", "3 or more")
    require(all(0 < weight < math.inf for weight in data.weights), "data.weights", "numbers above 0")
    alike = not data.weights or len(data.weights) == len(data.train)
    require(alike, "data.weights", f"as long as data.train, {len(data.train)}, or empty")
    conditions = len(data.where) <= 1 or len(data.where) == len(data.train)
    require(conditions, "data.where", f"one condition, or as many as data.train has entries, {len(data.train)}")
    smallest, largest = data.crop_scale
    require(0 < smallest <= largest <= 1, "data.crop_scale", "two areas, 0 < smallest <= largest <= 1")
    chosen = data.caption == "draw" or data.epoch == "images"
    require(chosen, "data.caption", "left out where an epoch draws every caption, or data.epoch = 'images'")
    whole = not data.shuffle_shards or data.shuffle != "global"
    require(whole, "data.shuffle_shards", "0 where data.shuffle = 'global', which shuffles no whole shards")
    operations, magnitude = data.randaugment
    require(operations >= 0 and 0 <= magnitude <= 10, "data.randaugment", "[operations, magnitude of 10]")
    for name in ("optim.lr", "optim.eps"):
        require(0 < value(name) < math.inf, name, "above 0")
    require(all(0 <= beta < 1 for beta in optim.betas), "optim.betas", "two numbers, at least 0 and below 1")
    require(0 <= optim.momentum < 1, "optim.momentum", "at least 0 and below 1")
    require(0 <= optim.floor <= 1, "optim.floor", "a share of the peak")
    require(optim.decay_steps >= -1, "optim.decay_steps", "-1 or more")
    scaled = (
        optim.schedule != "inverse_sqrt" or optim.warmup_steps > 0 or (optim.warmup_steps < 0 < optim.warmup_epochs)
    )
    require(scaled, "optim.schedule", "another without a warm-up, whose length says how fast the root falls")
    require(0 < optim.layer_decay <= 1, "optim.layer_decay", "above 0 and at most 1")
    require(train.steps <= LAST_STEP, "train.steps", f"at most {LAST_STEP}, which a checkpoint's name has room for")
    length = train.steps > 0 or train.pairs > 0 or 0 < train.epochs < math.inf
    require(length, "train.epochs", "above 0 where neither train.steps nor train.pairs is given")
    require(train.global_batch >= 2, "train.global_batch", "2 or more")
    require(train.micro_batch == "auto" or train.micro_batch >= 0, "train.micro_batch", "0 or more, or 'auto'")
    require(train.spike == 0 or 1 < train.spike < math.inf, "train.spike", "0 (off) or above 1")
    require(0 <= train.recompute <= 1, "train.recompute", "a share of the blocks, 0 to 1")
    require(0 <= train.audit <= 1, "train.audit", "a share of the micro-batches, 0 to 1")
    require(0 <= train.ema < 1, "train.ema", "at least 0 and below 1")
    require(0 < config.eval.memory_gb < math.inf, "eval.memory_gb", "above 0")
    require(0 < config.eval.share < math.inf, "eval.share", "above 0")
    evaluation = config.eval
    require(evaluation.every >= -1, "eval.every", "-1 or more")
    compared = not evaluation.select or bool(data.eval)
    require(compared, "eval.select", "left out where data.eval names no held-out shards")
    for name in ("eval.foils", "eval.classes"):
        beside = not value(name) or (bool(data.eval) and not config.task.is_labelled)
        require(beside, name, "left out where data.eval names nothing, and of a task that chooses among answers")
    counted = not evaluation.patience or (bool(evaluation.select) and evaluation.every >= 0)
    require(counted, "eval.patience", "0 without eval.select, and where eval.every is -1")
    require(0 < train.hang_minutes < math.inf, "train.hang_minutes", "above 0")
    mirror = config.checkpoint.mirror
    require(not mirror or "://" in mirror, "checkpoint.mirror", "a URL, such as s3://bucket/runs/mine")
    peers = config.checkpoint.peers
    require(peers == 0 or (peers == 1 and bool(mirror)), "checkpoint.peers", "0, or 1 beside a checkpoint.mirror")
