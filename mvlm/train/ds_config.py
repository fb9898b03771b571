"""The user's DeepSpeed JSON made whole: what the run TOML owns is filled in, what contradicts it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm.config import Config
from mvlm.errors import UserError

AUTO = "auto"

REFUSED = {
    "amp": "NVIDIA apex no longer has amp; use the bf16 section",
    "elasticity": "the global batch is fixed and checkpoints load at any number of ranks without it; delete it",
    "curriculum_learning": "the order of samples belongs to the loader; delete it",
    "data_efficiency": "the order of samples belongs to the loader; delete it",
    "sparse_gradients": "sparse embeddings are not used; delete it",
}

SECTIONS = ("zero_optimization", "fp16", "bf16", "optimizer", "scheduler")


def read_deepspeed_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"No DeepSpeed configuration at {path}: give --deepspeed_config one of ds_configs/.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): mend it.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def resolve(
    content: dict[str, Any],
    config: Config,
    where: tuple[str, str],
    world: int,
    total_steps: int,
    warmup_steps: int,
    parameters: int,
) -> dict[str, Any]:
    """Fill in a DeepSpeed configuration for `deepspeed.initialize`, given our own optimiser and schedule.

    Args:
        content: the user's JSON.
        where: names of the JSON and the TOML, for messages.
        parameters: of the model, which buckets are sized to.

    Raises:
        UserError: a key contradicts the TOML (both values and both files are named) or cannot work here.
    """
    json_name, toml_name = where
    for section, remedy in REFUSED.items():
        value = content.get(section)
        if value and not (isinstance(value, dict) and value.get("enabled") is False):
            raise UserError(f"{json_name}: section {section!r} cannot work here: {remedy}.")
    for section in SECTIONS:
        if not isinstance(content.get(section) or {}, dict):
            raise UserError(f"{json_name}: {section} is {content[section]!r}: give a JSON object, or delete it.")
    resolved: dict[str, Any] = {
        key: value for key, value in json.loads(json.dumps(content)).items() if value is not None
    }
    micro, accumulation = micro_batch(config, world), accumulation_steps(config, world)
    owned = {
        "train_batch_size": (config.train.global_batch, "train.global_batch"),
        "train_micro_batch_size_per_gpu": (micro, "train.micro_batch"),
        "gradient_accumulation_steps": (accumulation, "derived from train.global_batch, train.micro_batch and ranks"),
        "gradient_clipping": (config.optim.clip, "optim.clip"),
    }
    optimizer = {
        "lr": (config.optim.lr, "optim.lr"),
        "betas": (list(config.optim.betas), "optim.betas"),
        "eps": (config.optim.eps, "optim.eps"),
        "weight_decay": (config.optim.weight_decay, "optim.weight_decay"),
    }
    scheduler = {
        "total_num_steps": (total_steps, "train.steps or train.epochs"),
        "warmup_num_steps": (warmup_steps, "optim.warmup_steps or optim.warmup_epochs"),
        "warmup_max_lr": (config.optim.lr, "optim.lr"),
    }

    def agree(found: dict[str, Any], table: dict[str, tuple[Any, str]], prefix: str) -> None:
        for key, (value, owner) in table.items():
            given = found.get(key, AUTO)
            if given not in (AUTO, None) and given != value:
                raise UserError(
                    f"{json_name} sets {prefix}{key} to {given!r} but {toml_name} makes it {value!r} ({owner}): "
                    f"change one, or write {AUTO!r} in the JSON."
                )

    agree(content, owned, "")
    _check_kind(content.get("optimizer"), ("AdamW", "Adam", "FusedAdam"), "optimizer", json_name)
    agree(_params(content, "optimizer"), optimizer, "optimizer.params.")
    _check_kind(content.get("scheduler"), ("WarmupCosineLR",), "scheduler", json_name)
    agree(_params(content, "scheduler"), scheduler, "scheduler.params.")
    for section in ("optimizer", "scheduler"):  # ours are handed over as objects
        resolved.pop(section, None)
    resolved |= {key: value for key, (value, _) in owned.items()}
    _check_precision(resolved, json_name)
    _fill_zero(resolved, parameters, json_name)
    resolved.setdefault("steps_per_print", 2**31)  # the monitor reports
    for key in [key for key, value in resolved.items() if value == AUTO]:
        del resolved[key]
    if left := [name for name, value in _leaves(resolved, "") if value == AUTO]:
        raise UserError(f"{json_name}: {left[0]} is {AUTO!r}, which has no meaning here; give a value or delete it.")
    return resolved


def micro_batch(config: Config, world: int) -> int:
    """Pairs a rank a forward pass: as given, or the whole share of the rank."""
    return config.train.micro_batch or config.train.global_batch // world


def accumulation_steps(config: Config, world: int) -> int:
    """Micro-batches a rank a step.

    Raises:
        UserError: ranks x micro-batch does not divide the global batch, or ITM's groups do not fit the micro-batch.
    """
    total, micro, group = config.train.global_batch, micro_batch(config, world), config.objectives.itm_group
    if total % (micro * world):
        raise UserError(
            f"train.global_batch {total} is no multiple of {world} ranks x train.micro_batch {micro}: "
            "change one of the three."
        )
    if config.objectives.itm and micro % group:
        raise UserError(
            f"The micro-batch of {micro} pairs is no multiple of objectives.itm_group {group}: "
            "change train.micro_batch, train.global_batch or the group."
        )
    return total // (micro * world)


def usable_ranks(config: Config, world: int) -> int:
    """The largest number of the launched ranks that divides the global batch into whole ITM groups."""
    total = config.train.global_batch
    unit = config.train.micro_batch or (config.objectives.itm_group if config.objectives.itm else 1)
    if total % unit:
        raise UserError(
            f"train.global_batch {total} is no multiple of {unit} "
            f"({'train.micro_batch' if config.train.micro_batch else 'objectives.itm_group'}): change one of the two."
        )
    return max(ranks for ranks in range(1, world + 1) if (total // unit) % ranks == 0)


def _params(content: dict[str, Any], section: str) -> dict[str, Any]:
    return (content.get(section) or {}).get("params") or {}


def _check_kind(section: dict[str, Any] | None, allowed: tuple[str, ...], name: str, json_name: str) -> None:
    if section and section.get("type", AUTO) not in (AUTO, *allowed):
        raise UserError(
            f"{json_name} sets {name}.type to {section['type']!r} but this trainer's is {allowed[0]!r}: "
            f"delete the section or write {AUTO!r}."
        )


def _enabled(resolved: dict[str, Any], section: str) -> bool:
    value = resolved.get(section) or {}
    if value.get("enabled") == AUTO:  # Hugging Face's way of saying: as the trainer was told
        value["enabled"] = False
    return bool(value.get("enabled", False))


def _check_precision(resolved: dict[str, Any], json_name: str) -> None:
    fp16, bf16 = _enabled(resolved, "fp16"), _enabled(resolved, "bf16")
    if fp16 and bf16:
        raise UserError(f"{json_name} enables both fp16 and bf16: keep one.")
    if fp16 and resolved.get("zero_optimization", {}).get("stage", 0) == 0:
        raise UserError(
            f"{json_name} enables fp16 with ZeRO stage 0, which DeepSpeed computes wrongly (the loss is never scaled): "
            "use stage 1 or more, or bf16."
        )
    for section in ("fp16", "bf16"):
        for key in [key for key, value in (resolved.get(section) or {}).items() if value == AUTO]:
            del resolved[section][key]


def _fill_zero(resolved: dict[str, Any], parameters: int, json_name: str) -> None:
    """Buckets that let reduction overlap backward: a tenth of the model, at most 5e7 elements."""
    zero = resolved.setdefault("zero_optimization", {})
    stage = zero.setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{json_name}: zero_optimization.stage is {stage!r}: it must be 0, 1, 2 or 3.")
    bucket = max(500_000, min(50_000_000, parameters // 10))
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    stage3 = {"stage3_prefetch_bucket_size": bucket, "stage3_param_persistence_threshold": min(100_000, bucket)}
    for key, value in (sizes | stage3).items():
        if zero.get(key, AUTO if stage == 3 or key in sizes else None) == AUTO:
            zero[key] = value


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value
