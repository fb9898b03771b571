"""What follows from a plan, in sentences: what costs, what fits, and which setting to change."""

from __future__ import annotations

import dataclasses

from mvlm.estimate.plan import Planner
from mvlm.training.warnings import groups_warning
from mvlm.training.zero.memory import Zero

WORTH = 0.03
"""Share of a step's time below which one choice is as good as another."""
RECOMPUTED = (0.25, 0.5, 0.75, 1.0)


def advice(planner: Planner) -> list[str]:
    """Sentences, the most important first; never empty."""
    said = [
        *_unused(planner),
        *_does_not_fit(planner),
        *_lower_stage(planner),
        *_accumulation(planner),
        *_groups(planner),
        *_buckets(planner),
    ]
    return said or ["It fits, and no better choice was found."]


def _unused(planner: Planner) -> list[str]:
    gpus, ranks = planner.request.gpus, planner.ranks * planner.split
    if ranks == gpus:
        return []
    return [
        f"train.global_batch {planner.train.global_batch} uses {ranks} of the {gpus} GPUs: raise it, or ask for "
        f"{ranks}."
    ]


def _does_not_fit(planner: Planner) -> list[str]:
    """The first of: a smaller micro-batch, recomputed blocks, a higher stage."""
    if planner.fits(planner.zero, planner.pairs):
        return []
    need = planner.memory(planner.zero, planner.pairs).total / 1e9
    begin = f"A micro-batch of {planner.pairs} needs {need:.0f} GB of the {planner.room / 1e9:.0f} GB that can be used"
    if planner.largest:
        return [f'{begin}: set train.micro_batch = {planner.largest}, which fits, or "auto".']
    for share in RECOMPUTED if _with_recompute(planner, 1.0).largest else ():
        other = _with_recompute(planner, share)
        if other.largest:
            return [f"{begin}: set train.recompute = {share:g} and train.micro_batch = {other.largest}."]
    for stage in planner.stages[planner.zero.stage + 1 :]:
        if pairs := planner.largest_that_fits(planner.stage(stage)):
            return [f"{begin}, and no smaller one fits: ZeRO-{stage} fits with train.micro_batch = {pairs}."]
    return [f"{begin}, and nothing smaller fits at any stage: offload with ds_configs/zero3_offload.json."]


def _with_recompute(planner: Planner, share: float) -> Planner:
    train = dataclasses.replace(planner.train, recompute=share)
    return Planner(dataclasses.replace(planner.request, train=train), planner.whole)


def _lower_stage(planner: Planner) -> list[str]:
    """Advise a lower stage if it fits and is faster, or if offload is not needed.

    A higher stage is never advised for speed: what DeepSpeed's host work costs at each is not in the plan.
    """
    zero, pairs = planner.zero, planner.pairs
    offloads = zero.optimizer_on_host or zero.weights_on_host
    lower = [planner.stage(stage) for stage in range(zero.stage + offloads)]
    fitting = [other for other in lower if planner.fits(other, pairs)]
    if planner.ranks == 1 or not fitting:
        return []

    def seconds(other: Zero) -> float:
        return planner.step(other, planner.ranks, pairs, planner.accumulation).seconds

    best = min(reversed(fitting), key=seconds)
    cost = seconds(zero) / seconds(best) - 1
    name = f"ZeRO-{zero.stage}{' with offload' if offloads else ''}"
    if cost > WORTH:
        return [f"{name} costs you {cost * 100:.0f} % here; ZeRO-{best.stage} fits."]
    if offloads:
        return [f"{name} is not needed: ZeRO-{best.stage} fits without; the plan leaves out what offload costs."]
    return []


def _accumulation(planner: Planner) -> list[str]:
    if planner.accumulation == 1 or planner.largest <= planner.pairs:
        return []
    fewer = planner.train.global_batch // (planner.ranks * planner.largest)
    instead = f"{fewer} per step instead of {planner.accumulation}"
    return [f"A micro-batch of {planner.largest} fits: {instead}, with larger products."]


def _groups(planner: Planner) -> list[str]:
    """Say what a second pass costs, if ITM's groups need one."""
    if planner.span(planner.pairs)[1] == 1:
        return []
    share = planner.model.ahead() / sum(planner.model.flops(foreign=True).step.values())
    objectives, cost = planner.model.objectives, f"{share * 100:.0f} % more computing"
    return [groups_warning(objectives, planner.train.global_batch, planner.ranks, planner.pairs, cost)]


def _buckets(planner: Planner) -> list[str]:
    zero = planner.zero
    if zero.stage == 0 or planner.ranks == 1:
        return []
    if not zero.overlap:
        return ["zero_optimization.overlap_comm is off: nothing of the reduction hides behind backward."]
    if zero.reduce_bucket >= planner.model.total:
        return [
            f"zero_optimization.reduce_bucket_size {zero.reduce_bucket:,} holds the whole model, so that reduction "
            "begins when backward is over: delete it, or set 5e7 or less."
        ]
    return []
