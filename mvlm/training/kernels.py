"""Which implementation each operation uses in a run, the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mvlm.config.schema import Kernels
from mvlm.errors import Mistakes, UserError
from mvlm.kernels.dispatch import Op
from mvlm.kernels.ops import OPS, example
from mvlm.runtime import dist
from mvlm.runtime.imports import installed
from mvlm.runtime.log import log
from mvlm.training.zero.adamw import optimizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ALL_OPS: dict[str, Op] = OPS | {optimizer.name: optimizer}


def settle_run(kernels: Kernels) -> None:
    """Choose as `[kernels]` says; all ranks must call. What one rank lacks, none uses: they would diverge.

    Raises:
        UserError: an implementation asked for by name is not known, or cannot run on some rank.
    """
    settle(ALL_OPS, {name: getattr(kernels, name) for name in ALL_OPS})


def check_names(kernels: Kernels) -> None:
    """Raise `UserError` if `[kernels]` names implementations that do not exist, with a sentence for each."""
    mistakes = Mistakes()
    for name, op in ALL_OPS.items():
        with mistakes.gathered():
            op.check_name(getattr(kernels, name))
    mistakes.settle()


def survey(device: torch.device) -> dict[str, Any]:
    """Which implementation computes each operation on `device` in each precision, as now settled, and why no other."""
    return {"device": str(device), "operations": {name: _survey_op(op, device) for name, op in ALL_OPS.items()}}


def _survey_op(op: Op, device: torch.device) -> dict[str, Any]:
    taken: dict[str, str] = {}
    against: dict[str, dict[str, str]] = {implementation.name: {} for implementation in op.implementations}
    for precision, dtype in PRECISIONS.items():
        args = ([], {}, device, 1) if op is optimizer else example(op.name, device, dtype)
        chosen = taken[precision] = op.first(*args).name
        named = "is asked for" if op.choice == chosen else "comes first"
        for implementation in op.implementations:
            if implementation.name != chosen:
                reason = op.refusal(implementation, *args)
                against[implementation.name][precision] = reason or f"{chosen} {named}"
    versions = {one.name: installed(one.library) if op.why_not(one) is None else "" for one in op.implementations}
    listed = {name: {"version": versions[name], "not_taken": reasons} for name, reasons in against.items()}
    return {"taken": taken, "implementations": listed}


def settle(ops: Mapping[str, Op], choices: Mapping[str, str]) -> None:
    """Choose on every rank what can run on all of them."""
    lacking = dist.gather_objects({name: op.lacking() for name, op in ops.items()})
    for name, op in ops.items():
        for implementation in op.implementations:
            reasons = {r: why for r, own in enumerate(lacking) if (why := own[name].get(implementation.name))}
            if not reasons:
                continue
            reason = _of_ranks(reasons)
            if choices[name] == implementation.name:
                raise UserError(
                    f"kernels.{name} = {implementation.name!r} cannot run on every rank ({reason}): choose auto."
                )
            op.rule_out(implementation.name, reason)
            if len(reasons) < len(lacking):
                log.info(f"no rank takes {implementation.name} for {name} ({reason}).")
        op.choose(choices[name])


def _of_ranks(reasons: Mapping[int, str]) -> str:
    """The first rank's reason, after the ranks that lack it if not all do."""
    first = min(reasons)
    if len(reasons) == dist.world():
        return reasons[first]
    named = ", ".join(map(str, sorted(reasons)[:8])) + (", …" if len(reasons) > 8 else "")
    return f"rank{'s' * (len(reasons) > 1)} {named}: {reasons[first]}"
