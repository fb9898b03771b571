"""The user's DeepSpeed JSON completed: what the run TOML owns is filled in, what contradicts it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mvlm.config.schema import Optim, Train
from mvlm.errors import Mistakes, UserError
from mvlm.training.zero import fill as ds_fill
from mvlm.training.zero.combinations import refuse_with_muon, refuse_with_tensor_parallel
from mvlm.training.zero.json_file import (
    AUTO,
    TENSOR_PARALLEL,
    check_shape,
    drop_ignored,
    leaves,
    refuse_sections,
)
from mvlm.training.zero.json_keys import check_keys, check_values

OPTIMIZERS, SCHEDULERS = ("AdamW", "Adam", "FusedAdam"), ("WarmupCosineLR",)
ALWAYS = "always so"
Owned = dict[str, tuple[Any, str]]
"""Key of the JSON -> the value that this run has, and what determines it."""


@dataclass(frozen=True)
class RunSide:
    """What a run settles by its TOML and its ranks, and a DeepSpeed JSON must not contradict.

    Attributes:
        names: of the JSON and the TOML, for messages.
        folder: the run's.
        world: ranks, or replicas if several ranks split the layers of a model.
        steps: updates in all and of warm-up; None if they are not known, and the JSON may then say anything.
        parameters: of the model, by which buckets are sized.
    """

    names: tuple[str, str]
    folder: str
    train: Train
    optim: Optim
    world: int
    steps: tuple[int | None, int | None]
    parameters: int

    @property
    def owned(self) -> Owned:
        """Those at the JSON's top level."""
        return {
            "train_batch_size": (self.train.global_batch, "train.global_batch"),
            "train_micro_batch_size_per_gpu": (micro_batch(self.train, self.world), "train.micro_batch"),
            "gradient_accumulation_steps": (
                accumulation_steps(self.train, self.world),
                "derived from train.global_batch, train.micro_batch and ranks",
            ),
            "gradient_clipping": (self.optim.clip, "optim.clip"),
        }


def resolve(content: dict[str, Any], run: RunSide) -> dict[str, Any]:
    """Fill in the user's JSON for `deepspeed.initialize`, given our own optimiser and schedule.

    Raises:
        UserError: keys contradict the TOML (both values and both files are named) or cannot work here; each has its
            sentence.
    """
    json_name, mistakes = run.names[0], Mistakes()
    check_shape(content, json_name)
    with mistakes.gathered():
        refuse_sections(content, json_name)
    with mistakes.gathered():
        check_keys(content, json_name)
    for sentence in _contradictions(content, run):
        mistakes.add(sentence)
    copied = drop_ignored(json.loads(json.dumps(content)))
    resolved: dict[str, Any] = {key: value for key, value in copied.items() if value is not None}
    if old := resolved.pop("bfloat16", None):  # its former name
        resolved.setdefault("bf16", old)
    for section in ("optimizer", "scheduler"):  # ours are handed over as objects
        resolved.pop(section, None)
    with mistakes.gathered():
        zero, low_precision = ds_fill.fill_zero(resolved, run.parameters, json_name), True
        with mistakes.gathered():
            low_precision = ds_fill.fill_precision(resolved, json_name)
        ds_fill.fill_offload(zero, run.folder, low_precision, json_name)
        if run.optim.name == "muon":
            refuse_with_muon(zero, json_name)
        if run.train.checksums and (zero.get("offload_param") or {}).get("device") == "nvme":
            raise UserError(
                f"train.checksums sums what is in memory, but {json_name} has parameters on NVMe by "
                "zero_optimization.offload_param: turn one of the two off."
            )
    if "tensor_parallel" in resolved:
        with mistakes.gathered():
            refuse_with_tensor_parallel(resolved, run.train, run.optim, json_name)
    mistakes.settle()
    resolved |= {key: value for key, (value, _) in run.owned.items()}
    resolved.setdefault("steps_per_print", 2**31)  # the monitor reports
    for key in [key for key, value in resolved.items() if value == AUTO]:
        del resolved[key]
    if left := [name for name, value in leaves(resolved) if value == AUTO]:
        raise UserError(f"{json_name}: {left[0]} is {AUTO!r}, which has no meaning here; give a value or delete it.")
    check_values(resolved, json_name)
    return resolved


def micro_batch(train: Train, world: int) -> int:
    """Pairs per rank in a forward pass: as given, or the rank's whole share."""
    return _given(train) or train.global_batch // world


def micro_batches(train: Train, world: int) -> list[int]:
    """Those that divide the global batch among `world` ranks, smallest first."""
    share = train.global_batch // world
    return [pairs for pairs in range(1, share + 1) if share % pairs == 0]


def accumulation_steps(train: Train, world: int) -> int:
    """Micro-batches per rank in a step; one still to be found counts as the rank's whole share.

    Raises:
        UserError: ranks x micro-batch does not divide the global batch.
    """
    total, micro = train.global_batch, micro_batch(train, world)
    if total % (micro * world):
        raise UserError(
            f"train.global_batch {total} is not a multiple of {world} ranks x train.micro_batch {micro}: "
            "change one of the three."
        )
    return total // (micro * world)


def usable_ranks(trains: Train | Sequence[Train], world: int, split: int = 1) -> int:
    """The largest number of the launched ranks that divides the global batch, of all stages if there are several.

    Args:
        split: ranks that see the same samples, and can only be used together.
    """
    if world < split:
        raise UserError(f"{TENSOR_PARALLEL} {split} needs as many ranks: launch {split}, or a multiple of it.")
    stages = [trains] if isinstance(trains, Train) else trains
    for train in stages:
        if train.global_batch % (_given(train) or 1):
            raise UserError(
                f"train.global_batch {train.global_batch} is not a multiple of {_given(train)} (train.micro_batch): "
                "change one of the two."
            )
    shares = [train.global_batch // (_given(train) or 1) for train in stages]
    replicas = range(1, world // split + 1)
    return split * max(number for number in replicas if all(share % number == 0 for share in shares))


def _given(train: Train) -> int:
    """`train.micro_batch`, 0 if no number is given."""
    return 0 if train.micro_batch == "auto" else train.micro_batch


def _contradictions(content: dict[str, Any], run: RunSide) -> Iterator[str]:
    """Sentences for what the TOML owns and is neither absent nor "auto" nor equal in the JSON."""
    optim = run.optim
    gradients: Owned = {"gradient_allreduce_op": ("mean", ALWAYS), "managed_gradient_accumulation": (True, ALWAYS)}
    yield from _differing(content, run.owned | gradients, run.names)
    optimizer: Owned = {
        "lr": (optim.lr, "optim.lr"),
        "betas": (list(optim.betas), "optim.betas"),
        "eps": (optim.eps, "optim.eps"),
        "weight_decay": (optim.weight_decay, "optim.weight_decay"),
        "adam_w_mode": (True, ALWAYS),
        "bias_correction": (True, ALWAYS),
        "amsgrad": (False, ALWAYS),
        "fp32_optimizer_states": (True, ALWAYS),
    }
    kinds = OPTIMIZERS if optim.name == "adamw" else ("Muon",)
    yield from _of_section(content, "optimizer", kinds, optimizer, run, harmless="torch_adam")
    scheduler: Owned = {
        "total_num_steps": (run.steps[0], "train.steps or train.epochs"),
        "warmup_num_steps": (run.steps[1], "optim.warmup_steps or optim.warmup_epochs"),
        "warmup_type": ("linear", ALWAYS),
        "warmup_min_lr": (0, ALWAYS),
        "warmup_min_ratio": (0, ALWAYS),
        "warmup_max_lr": (optim.lr, "optim.lr"),
        "cos_min_ratio": (optim.floor, "optim.floor"),
    }
    yield from _of_section(content, "scheduler", SCHEDULERS, scheduler, run)


def _of_section(
    content: dict[str, Any], section: str, kinds: Sequence[str], table: Owned, run: RunSide, harmless: str = ""
) -> Iterator[str]:
    """Args: harmless: a parameter of the section that changes nothing."""
    (json_name, toml_name), optim = run.names, run.optim
    given = content.get(section) or {}
    kind, params = given.get("type", AUTO), given.get("params") or {}
    if kind not in (AUTO, *kinds):
        yield (
            f"{json_name} sets {section}.type to {kind!r} but {toml_name} is trained with {kinds[0]!r}: "
            f"delete the section, or write {AUTO!r}."
        )
    elif section == "scheduler" and kind != AUTO and optim.schedule != "cosine":
        yield (
            f"{json_name} sets scheduler.type to {kind!r} but {toml_name} makes the schedule {optim.schedule!r} "
            f"(optim.schedule): delete the section, or write {AUTO!r}."
        )
    else:
        yield from _differing(params, table, run.names, f"{section}.params.")
        for key, value in params.items():
            if key not in (*table, harmless) and value not in (AUTO, None):
                yield (
                    f"{json_name} sets {section}.params.{key} to {value!r}, which the {kinds[0]} that {toml_name} "
                    "is trained with does not know: delete it."
                )


def _differing(found: dict[str, Any], table: Owned, names: tuple[str, str], prefix: str = "") -> Iterator[str]:
    for key, (value, owner) in table.items():
        given = found.get(key, AUTO)
        if value is not None and given not in (AUTO, None) and given != value:
            yield (
                f"{names[0]} sets {prefix}{key} to {given!r} but {names[1]} makes it {value!r} ({owner}): "
                f"change one, or write {AUTO!r} in the JSON."
            )
