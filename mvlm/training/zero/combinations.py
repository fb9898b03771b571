"""What Muon and tensor parallelism cannot be combined with."""

from __future__ import annotations

from typing import Any

from mvlm.config.schema import Optim, Train
from mvlm.errors import Mistakes, UserError
from mvlm.training.zero.fill import OFFLOADS, low_precision
from mvlm.training.zero.json_file import TENSOR_PARALLEL


def refuse_with_muon(zero: dict[str, Any], json_name: str) -> None:
    """Raise `UserError` if Muon cannot be combined with a filled-in section zero_optimization."""
    for name in OFFLOADS:
        if (zero.get(name) or {}).get("device", "none") != "none":
            raise UserError(
                f"optim.name = 'muon' needs whole matrices on the device, and {json_name} offloads by "
                f"zero_optimization.{name}: delete that section, or set optim.name = 'adamw'."
            )
    if int(zero.get("zero_hpz_partition_size") or 1) > 1:
        raise UserError(
            "optim.name = 'muon' has not been shown to be exact with zero_optimization.zero_hpz_partition_size, which "
            f"{json_name} sets: delete that key, or set optim.name = 'adamw'."
        )


def refuse_with_tensor_parallel(resolved: dict[str, Any], train: Train, optim: Optim, json_name: str) -> None:
    """Raise `UserError` with a sentence for each setting that cannot be combined with split layers.

    Args:
        resolved: a DeepSpeed configuration that has the section, filled in.
    """
    zero, rounded = resolved["zero_optimization"], bool(low_precision(resolved))
    unfit = [
        (zero["stage"] == 3, "ZeRO stage 3, which splits every parameter by itself: use stage 2"),
        (zero["stage"] == 0 and rounded, "bf16 at stage 0, where DeepSpeed clips by one rank's norm: use stage 1"),
        *(
            ((zero.get(name) or {}).get("device", "none") != "none", f"zero_optimization.{name}: delete one of the two")
            for name in OFFLOADS
        ),
        (optim.name == "muon", "optim.name 'muon', which needs whole matrices: use adamw"),
        (train.micro_batch == "auto", "train.micro_batch 'auto', which is tried on a whole model: give a number"),
        (bool(train.audit), "train.audit, where one rank computes what another has: set it to 0"),
        (train.compile not in ("auto", False), "train.compile, which does not compile exchanges: set it to false"),
    ]
    mistakes = Mistakes()
    for is_so, what in unfit:
        if is_so:
            mistakes.add(f"{json_name}: {TENSOR_PARALLEL} cannot be combined with {what}.")
    mistakes.settle()
