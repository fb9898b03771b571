"""What a DeepSpeed JSON leaves open or calls "auto" about precision, buckets and offload, filled in and checked."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import torch

from mvlm.errors import Mistakes, UserError
from mvlm.kernels.probes import cpu_gains_by_bf16
from mvlm.runtime import dist
from mvlm.training.zero.disk import SUB_GROUP
from mvlm.training.zero.json_file import AUTO

OFFLOADS = ("offload_optimizer", "offload_param")


def fill_precision(resolved: dict[str, Any], json_name: str) -> bool:
    """fp16 is on only if asked for, bf16 "auto" if every rank's GPU or CPU gains by it; returns whether either is."""
    fp16, bf16 = (resolved.get(name) or {} for name in ("fp16", "bf16"))
    if fp16.get("enabled") == AUTO:
        fp16["enabled"] = False
    if bf16.get("enabled") == AUTO:
        bf16["enabled"] = all(dist.gather_objects(_has_bf16())) and not fp16.get("enabled")
    if fp16.get("enabled") and bf16.get("enabled"):
        raise UserError(f"{json_name} enables both fp16 and bf16: keep one.")
    stage = resolved["zero_optimization"]["stage"]
    if fp16.get("enabled") and stage == 0:
        raise UserError(
            f"{json_name} enables fp16 with ZeRO stage 0, which DeepSpeed computes wrongly (the loss is never scaled): "
            "use stage 1 or more, or bf16."
        )
    autocast = resolved.get("torch_autocast") or {}
    if autocast.get("enabled") and autocast.get("dtype") in ("float16", "fp16", "half"):
        raise UserError(f"{json_name}: torch_autocast in float16 would need a loss scale: use the fp16 section.")
    accumulated = (resolved.get("data_types") or {}).get("grad_accum_dtype")
    if stage == 0 and accumulated not in (None, AUTO, "bf16" if bf16.get("enabled") else "fp32"):
        raise UserError(
            f"{json_name} sets data_types.grad_accum_dtype to {accumulated!r}, which needs ZeRO stage 1 or more: "
            "delete it or raise the stage."
        )
    for section in (fp16, bf16, autocast, resolved.get("data_types") or {}):
        for key in [key for key, value in section.items() if value == AUTO]:
            del section[key]
    if bf16.get("enabled"):  # each step is judged by its norm; testing each gradient would be most of its calls
        bf16.setdefault("check_grad_overflow", False)
    return bool(fp16.get("enabled") or bf16.get("enabled"))


def low_precision(resolved: dict[str, Any]) -> str:
    """Which of bf16 and fp16 a filled-in configuration enables; "" for neither."""
    return next((name for name in ("bf16", "fp16") if (resolved.get(name) or {}).get("enabled")), "")


def _has_bf16() -> bool:
    """Whether this rank's device multiplies faster in bf16."""
    if dist.uses_cuda():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_gains_by_bf16()


def fill_zero(resolved: dict[str, Any], parameters: int, json_name: str) -> dict[str, Any]:
    """Fill in buckets of a tenth of the model, at most 5e7 elements, so that reduction overlaps backward."""
    zero: dict[str, Any] = resolved.setdefault("zero_optimization", {})
    stage = zero.setdefault("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise UserError(f"{json_name}: zero_optimization.stage is {stage!r}: it must be 0, 1, 2 or 3.")
    if zero.get("compute_grad_norm") is False:
        raise UserError(f"{json_name} sets zero_optimization.compute_grad_norm to False: every step's norm is watched.")
    bucket = max(500_000, min(50_000_000, parameters // 20 * 2))  # DeepSpeed refuses odd ones
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    stage3 = {"stage3_prefetch_bucket_size": bucket, "stage3_param_persistence_threshold": min(100_000, bucket)}
    for key, value in (sizes | stage3).items():
        if zero.get(key, AUTO if stage == 3 or key in sizes else None) == AUTO:
            zero[key] = value
    if zero.get("zero_hpz_partition_size") == AUTO:
        zero["zero_hpz_partition_size"] = _ranks_per_node()
    for key in [key for key in zero if zero[key] == AUTO and (key.startswith("stage3_") or key == "sub_group_size")]:
        del zero[key]
    return zero


def _ranks_per_node() -> int:
    """If there are several nodes with equally many ranks; else 1, which leaves hpZ off."""
    hosts = dist.gather_objects(socket.gethostname())
    counts = {hosts.count(host) for host in hosts}
    return counts.pop() if len(set(hosts)) > 1 and len(counts) == 1 else 1


def fill_offload(zero: dict[str, Any], folder: str, low_precision: bool, json_name: str) -> None:
    """Refuse what would not work, and give NVMe a folder of the run's own; raises `UserError` with a sentence for each
    section.

    Args:
        folder: the run's.
    """
    mistakes = Mistakes()
    for old, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        if zero.pop(old, False):
            zero.setdefault(new, {"device": "cpu"})
    for name in OFFLOADS:
        with mistakes.gathered():
            _fill_one_offload(name, zero, folder, low_precision, json_name)
    mistakes.settle()


def _fill_one_offload(name: str, zero: dict[str, Any], folder: str, low_precision: bool, json_name: str) -> None:
    section = zero.get(name) or {}
    device = section.get("device", "none")
    if device not in ("none", "cpu", "nvme"):
        raise UserError(f"{json_name}: zero_optimization.{name}.device is {device!r}: give none, cpu or nvme.")
    needed = 3 if name == "offload_param" or device == "nvme" else 1
    if device != "none" and zero["stage"] < needed:
        raise UserError(
            f"{json_name} offloads to {device} by zero_optimization.{name}, which needs ZeRO stage {needed}"
            f"{' or more' if needed < 3 else ''}, at stage {zero['stage']}: raise that or delete the section."
        )
    if section.get("ratio", 1) != 1:
        raise UserError(f"{json_name}: zero_optimization.{name}.ratio is {section['ratio']!r}: it must be 1.")
    if device == "nvme" and name == "offload_optimizer":
        if section.get("pin_memory"):
            raise UserError(
                f"{json_name} sets zero_optimization.{name}.pin_memory, but there is no memory to pin on NVMe: "
                "delete the key."
            )
        zero.setdefault("sub_group_size", SUB_GROUP)
    elif device == "nvme" and not low_precision:
        raise UserError(
            f"{json_name}: zero_optimization.{name}.device is 'nvme', where DeepSpeed keeps 16 bits of each "
            "parameter: enable bf16, or use 'cpu'."
        )
    if device == "nvme":
        section["nvme_path"] = _nvme_folder(section.get("nvme_path"), folder, name, json_name)
    else:
        section.pop("nvme_path", None)


def _nvme_folder(given: str | None, folder: str, name: str, json_name: str) -> str:
    """A folder of this run alone: two that shared one would overwrite each other's state."""
    path = os.environ.get("TMPDIR") if given in (None, AUTO) else given
    if not path:
        raise UserError(
            f"{json_name}: zero_optimization.{name} offloads to NVMe: set nvme_path, or TMPDIR in the environment, "
            "to a folder on a disk of the node."
        )
    run = hashlib.sha256(str(Path(folder).absolute()).encode()).hexdigest()
    return str(Path(path) / f"mvlm-{run[:12]}")
