"""Keys of a JSON that DeepSpeed does not know, with the nearest that it does, and values that it would refuse."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from mvlm.errors import Mistakes, UserError, first_line
from mvlm.training.zero.json_file import REFUSED, UNUSED
from mvlm.training.zero.start import tell_deepspeed

TOP = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("managed_gradient_accumulation", "gradient_allreduce_op", "prescale_gradients", "gradient_predivide_factor"),
    *("communication_data_type", "disable_allgather", "disable_python_gc", "dump_state", "log_level"),
    *("memory_breakdown", "steps_per_print", "vocabulary_size", "wall_clock_breakdown"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
)
"""Keys that are not sections."""

PLAIN = {
    "aio": ("block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit", "use_gds"),
    "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    "flops_profiler": (
        *("enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file"),
    ),
    "optimizer": ("type", "params", "legacy_fusion"),
    "scheduler": ("type", "params"),
    "timers": ("throughput",),
    "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
}
"""Sections that DeepSpeed reads key by key; for all others it has models that declare their keys."""


def check_keys(content: dict[str, Any], json_name: str) -> None:
    """Raise `UserError` with a sentence for each key that DeepSpeed does not know."""
    models = _models()
    mistakes = Mistakes()
    for name, known in _unknown(content, {*TOP, *PLAIN, *models, *UNUSED, *(n for n in REFUSED if "." not in n)}, ""):
        mistakes.add(_sentence(name, known, json_name))
    for section, value in content.items():
        if isinstance(value, dict) and section not in UNUSED:
            for name, known in _unknown_in(section, value, models.get(section) or PLAIN.get(section)):
                mistakes.add(_sentence(name, known, json_name))
    mistakes.settle()


def check_values(resolved: dict[str, Any], json_name: str) -> None:
    """Raise `UserError` if DeepSpeed would refuse a configuration, whose batch layout is not looked at."""
    tell_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    # Without the global batch: DeepSpeed derives it for as many ranks as there are now.
    layout = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    try:
        ours = ("train_batch_size", "tensor_parallel")
        DeepSpeedConfig({key: value for key, value in resolved.items() if key not in ours} | layout)
    except ValidationError as error:
        section = {model.__name__: [name] for name, model in _models().items()}.get(error.title, [])
        mistakes = Mistakes()
        for found in error.errors():
            name = ".".join(map(str, [*section, *found["loc"]]))
            mistakes.add(f"{json_name}: {name} is {found['input']!r} ({found['msg']}): give another value.")
        mistakes.settle()
    except Exception as error:  # assertions and several kinds of errors, all about the JSON
        reason = first_line(error)
        raise UserError(f"{json_name} is refused by DeepSpeed ({reason}): fix it.") from None


def _models() -> dict[str, Any]:
    """DeepSpeed's own model of each section that has one."""
    tell_deepspeed()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
        "comet": CometConfig,
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": CSVConfig,
        "fp16": DeepSpeedFP16Config,
        "tensor_parallel": TPTrainingConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "zero_optimization": DeepSpeedZeroConfig,
    }


def _unknown_in(section: str, value: dict[str, Any], known: Any) -> Iterator[tuple[str, set[str]]]:
    """Unknown keys of a section, those of its own sections among them, each with the names that are known there."""
    if known is None:
        return
    if not hasattr(known, "model_fields"):
        yield from _unknown(value, set(known), f"{section}.")
        return
    fields = known.model_fields | {field.alias: field for field in known.model_fields.values() if field.alias}
    yield from _unknown(value, set(fields), f"{section}.")
    for key, inner in value.items():
        if isinstance(inner, dict) and key in fields and f"{section}.{key}" not in REFUSED:
            yield from _unknown_in(f"{section}.{key}", inner, _model_in(fields[key].annotation))


def _model_in(annotation: Any) -> Any:
    """The model that a field may hold; None if it holds none."""
    held = [annotation, *getattr(annotation, "__args__", ())]
    return next((one for one in held if hasattr(one, "model_fields")), None)


def _unknown(found: dict[str, Any], known: set[str], prefix: str) -> Iterator[tuple[str, set[str]]]:
    refused = {name.removeprefix(prefix) for name in REFUSED if name.startswith(prefix)}
    for key in found:
        if key not in known and key not in refused:
            yield f"{prefix}{key}", {f"{prefix}{name}" for name in known}


def _sentence(name: str, known: set[str], json_name: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{json_name}: {name} is not a key that DeepSpeed knows; " + (
        f"did you mean {near[0]}?" if near else "delete it."
    )
