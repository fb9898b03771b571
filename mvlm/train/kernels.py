"""Which implementation each operation takes in a run, on all ranks alike, and the model made to use them."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import nn

from mvlm import dist
from mvlm.config import Config
from mvlm.errors import UserError
from mvlm.kernels.dispatch import AUTO, Op
from mvlm.kernels.layers import use_kernels
from mvlm.kernels.ops import OPS
from mvlm.train.adamw import optimizer

ALL_OPS: dict[str, Op] = OPS | {optimizer.name: optimizer}


def apply_kernels(model: nn.Module, config: Config) -> None:
    """Settle the run's `[kernels]` and exchange the model's layers; all ranks must call, before any sharding.

    What one rank lacks, none takes: ranks that compute differently would train apart.

    Raises:
        UserError: an implementation asked for by name is not known, or cannot run on some rank.
    """
    settle(ALL_OPS, {name: getattr(config.kernels, name) for name in ALL_OPS})
    use_kernels(model)


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
            if len(reasons) < len(lacking) and dist.rank() == 0:
                print(f"mvlm: no rank takes {implementation.name} for {name} ({reason}).", file=sys.stderr, flush=True)
        op.choose(choices.get(name, AUTO))


def _of_ranks(reasons: Mapping[int, str]) -> str:
    """The first rank's reason, and which ranks lack it where not all do."""
    first = min(reasons)
    if len(reasons) == dist.world():
        return reasons[first]
    named = ", ".join(map(str, sorted(reasons)[:8])) + (", …" if len(reasons) > 8 else "")
    return f"rank{'s' * (len(reasons) > 1)} {named}: {reasons[first]}"
