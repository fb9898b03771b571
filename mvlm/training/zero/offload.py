"""The optimiser on the device or, if a DeepSpeed configuration offloads it, on the CPU; what that has to compile."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mvlm.config.schema import Optim
from mvlm.errors import UserError, first_line
from mvlm.model.encoders import Encoders
from mvlm.runtime import dist
from mvlm.runtime.extensions import wait_for_compilations
from mvlm.runtime.launch import environment
from mvlm.runtime.log import log
from mvlm.training.optim import parameter_groups
from mvlm.training.zero.adamw import build_adamw
from mvlm.training.zero.muon import Muon


def build_optimizer(
    model: Encoders,
    optim: Optim,
    ds_config: dict[str, Any],
    device: torch.device,
    frozen_until: Mapping[str, int],
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """The optimiser on the device or, if it is AdamW with its state offloaded, on the CPU, and the DeepSpeed
    configuration to go with it.

    Raises:
        UserError: parameters are offloaded to a disk that cannot be written or that DeepSpeed cannot reach.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    groups, zero = parameter_groups(model, optim, frozen_until), ds_config["zero_optimization"]
    if optim.name == "muon":
        return Muon(groups, optim), ds_config | {"zero_allow_untested_optimizer": True}
    if folder := (zero.get("offload_param") or {}).get("nvme_path"):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Parameters cannot be offloaded to {folder} ({error}): set nvme_path.") from None
        if reason := _why_not_built(AsyncIOBuilder):
            raise UserError(
                f"Offload to NVMe needs DeepSpeed's async_io, which cannot be compiled here ({reason}): install g++ "
                "and libaio-dev (libaio-devel), or offload to the CPU with ds_configs/zero3_offload.json."
            )
    if (zero.get("offload_optimizer") or {}).get("device", "none") == "none":
        return build_adamw(groups, optim, device, zero["stage"]), ds_config
    if reason := _why_not_built(CPUAdamBuilder):
        log.warning(f"DeepSpeed's AdamW for CPUs cannot be compiled ({reason}); torch's is used, which is slower.")
        on_cpu = build_adamw(groups, optim, torch.device("cpu"), zero["stage"])
        return on_cpu, ds_config | {"zero_force_ds_cpu_optimizer": False}
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    settings: dict[str, Any] = {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    return DeepSpeedCPUAdam(groups, lr=optim.lr, adamw_mode=True, **settings), ds_config


def _why_not_built(builder: Any) -> str | None:
    """Compile one of DeepSpeed's extensions, or load it if that has been done; returns why a rank cannot, if so."""
    # The ninja of this environment, activated or not: another version of it would recompile everything.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if environment()["local_rank"] == 0:
        wait_for_compilations({builder().name, "pin_memory"})  # which async_io loads first
    dist.barrier()  # no rank compiles while another may still remove a lock
    try:
        builder().load(verbose=False)
        failure = None
    except Exception as error:  # compilers fail in many ways
        failure = first_line(error)
    return next((f"rank {rank}: {found}" for rank, found in enumerate(dist.gather_objects(failure)) if found), None)
