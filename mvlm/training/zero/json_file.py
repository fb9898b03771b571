"""The user's DeepSpeed JSON by itself: what of it cannot work here, or does nothing, whatever the TOML says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvlm.config.shipped import find_file
from mvlm.errors import Mistakes, UserError

AUTO = "auto"
TENSOR_PARALLEL = "tensor_parallel.autotp_size"
"""Ranks that split the layers of transformer blocks among themselves."""
BY_AUTOTP_SIZE = f"give {TENSOR_PARALLEL} instead"
REFUSED = {
    "amp": "NVIDIA apex no longer has amp; use the bf16 section",
    "compression_training": "nothing is pruned or quantised in training; delete it",
    "curriculum_learning": "the order of samples belongs to the loader; delete it",
    "data_efficiency": "the order of samples belongs to the loader; delete it",
    "deepcompile": "it would compile the whole step; delete it, and set train.compile in the TOML",
    "elasticity": "the global batch is fixed and checkpoints load at any number of ranks without it; delete it",
    "eigenvalue": "nothing is quantised by it; delete it",
    "expert_parallel": "the model has no experts; delete it",
    "graph_harvesting": "DeepSpeed no longer has it; delete it",
    "hybrid_engine": "nothing is generated in training; delete it",
    "nebula": "checkpoints are the trainer's own; delete it",
    "progressive_layer_drop": "no layer is left out; set drop_path_rate in model.vision_args",
    "quantize_training": "nothing is quantised in training; delete it",
    "sequence_parallel_size": "every rank has whole sequences; delete it",
    "sparse_attention": "DeepSpeed no longer has it; delete it",
    "sparse_gradients": "sparse embeddings are not used; delete it",
    "weight_quantization": "nothing is quantised in training; delete it",
    "compile.deepcompile": "it would compile the whole step; delete it, and set train.compile in the TOML",
    "tensor_parallel.tp.tp_size": BY_AUTOTP_SIZE,
    "tensor_parallel.tensor_parallel.tp_size": BY_AUTOTP_SIZE,
    "zero_optimization.mics_shard_size": "DeepSpeed no longer has it; use zero_hpz_partition_size",
    "zero_optimization.mics_hierarchical_params_gather": "DeepSpeed no longer has it; delete it",
    "zero_optimization.zeropp_loco_param": "DeepSpeed no longer has it; delete it",
    "zero_optimization.zenflow": "checkpoints could not be taken of it; use offload_optimizer alone",
    "zero_optimization.offload_optimizer.super_offload": "checkpoints could not be taken of it; delete it",
}
"""What would make the training differ from what the TOML says, and what to do instead."""

HARMLESS = {"sequence_parallel_size": 1, "zero_optimization.mics_shard_size": -1}
"""Their values, besides false, 0 and "auto", that ask for nothing; for the keys of tensor_parallel it is 1."""

UNUSED = {
    "activation_checkpointing": "train.recompute in the TOML saves that memory",
    "autotuning": "train.micro_batch = 'auto' in the TOML finds the micro-batch",
    "checkpoint": "[checkpoint] in the TOML says how they are written",
    "compile": "train.compile in the TOML compiles the blocks",
    "data_parallel_size": "all ranks take part",
    "dataloader_drop_last": "the loader is the trainer's own",
    "datastates_ckpt": "[checkpoint] in the TOML says how they are written",
    "pipeline": "the model is not a pipeline",
    "seq_parallel_communication_data_type": "every rank has whole sequences",
    "use_data_before_expert_parallelism": "the model has no experts",
}
"""Known to DeepSpeed and without effect here, and what takes its place."""

SECTIONS = (
    *("zero_optimization", "fp16", "bf16", "bfloat16", "optimizer", "scheduler", "data_types", "torch_autocast"),
    "tensor_parallel",
)
INNER_SECTIONS = (
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param",
    "optimizer.params",
    "scheduler.params",
)


def read_deepspeed_json(path: str | Path) -> dict[str, Any]:
    """The content of a file, or of a shipped one by its name.

    Raises:
        UserError: there is none, or it does not hold a JSON object.
    """
    try:
        content = json.loads(find_file(path, "ds_configs").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"No DeepSpeed configuration at {path}: give --deepspeed_config one of ds_configs/.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): fix it.") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a JSON object, not a {type(content).__name__}: begin from one of ds_configs/."
        )
    return content


def refuse_sections(content: dict[str, Any], json_name: str) -> None:
    """Raise `UserError` for what is not a configuration, or cannot work here whatever its values and the TOML's."""
    check_shape(content, json_name)
    mistakes = Mistakes()
    for name, remedy in REFUSED.items():
        value = look_up(content, name)
        if not _is_off(name, value):
            kind = "section" if isinstance(value, dict) else "key"
            mistakes.add(f"{json_name}: {kind} {name!r} cannot work here: {remedy}.")
    mistakes.settle()


def tensor_ranks(content: dict[str, Any]) -> int:
    """How many ranks split the layers of transformer blocks among themselves; 1 = they are not split."""
    ranks = look_up(content, TENSOR_PARALLEL)
    return ranks if isinstance(ranks, int) and ranks > 1 else 1


def check_shape(content: dict[str, Any], json_name: str) -> None:
    """Raise `UserError` if a value takes the place of a section."""
    mistakes = Mistakes()
    for section in (*SECTIONS, *INNER_SECTIONS):
        found = look_up(content, section) or {}
        if not isinstance(found, dict):
            mistakes.add(f"{json_name}: {section} is {found!r}: give a JSON object, or delete it.")
    mistakes.settle()
    ranks = look_up(content, TENSOR_PARALLEL)
    if isinstance(ranks, bool) or not isinstance(ranks or 0, int) or (ranks or 0) < 0:
        raise UserError(f"{json_name}: {TENSOR_PARALLEL} is {ranks!r}: give a number of ranks, or delete it.")


def unused(content: dict[str, Any], json_name: str) -> list[str]:
    """A sentence for each key that asks for something and changes nothing here."""
    others = (f"tensor_parallel.{key}" for key in content.get("tensor_parallel") or {})
    reasons = UNUSED | {name: f"{TENSOR_PARALLEL} alone counts" for name in others if name != TENSOR_PARALLEL}
    asked = [name for name in reasons if not _is_off(name, look_up(content, name))]
    return [f"{json_name}: {name} is not used: {reasons[name]}." for name in asked]


def drop_ignored(content: dict[str, Any]) -> dict[str, Any]:
    """The content less what has no effect, since DeepSpeed refuses some sections even if they are turned off."""
    zero = content.get("zero_optimization")
    gone = {"tensor_parallel", *UNUSED, *REFUSED}
    kept = {name: value for name, value in content.items() if name not in gone}
    if (ranks := tensor_ranks(content)) > 1:
        kept["tensor_parallel"] = {"autotp_size": ranks}  # the engine's, not DeepSpeed's
    if isinstance(zero, dict):
        kept["zero_optimization"] = {k: v for k, v in zero.items() if f"zero_optimization.{k}" not in REFUSED}
    return kept


def look_up(content: dict[str, Any], name: str) -> Any:
    """What is at a dotted name; None if nothing is."""
    value: Any = content
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a section, by its dotted name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


def _is_off(name: str, value: Any) -> bool:
    harmless = 1 if name.startswith("tensor_parallel.") else HARMLESS.get(name)
    turned_off = isinstance(value, dict) and value.get("enabled") is False
    return not value or value in (AUTO, harmless) or turned_off
