"""What the launcher has told this process. Nothing is imported for it: a mistake is reported before torch is there."""

from __future__ import annotations

import os


def environment() -> dict[str, int]:
    """Rank, local rank and world size as the launcher gave them: deepspeed and torchrun by name, srun by SLURM_*."""
    slurm = "SLURM_PROCID" in os.environ and "RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS") if slurm else ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    values = (int(os.environ.get(name, default)) for name, default in zip(names, (0, 0, 1), strict=True))
    return dict(zip(("rank", "local_rank", "world"), values, strict=True))
