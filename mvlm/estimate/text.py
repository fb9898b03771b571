"""A plan as JSON, and as text for people."""

from __future__ import annotations

from typing import Any

from mvlm.estimate.advice import advice
from mvlm.estimate.choice import GB
from mvlm.estimate.communication import agreement
from mvlm.estimate.plan import Planner
from mvlm.runtime.wording import counted
from mvlm.training.schedule import schedule_steps

SCALES = (8, 64, 512, 4096)
"""Numbers of GPUs for which the efficiency is planned."""

KINDS = ("weights", "gradients", "optimizer", "activations", "contrastive", "negatives", "scratch")
KIND_NAMES = {"contrastive": "contrast", "negatives": "ITM negatives", "scratch": "temporary"}


def as_json(planner: Planner) -> dict[str, Any]:
    """All that is planned, in bytes, seconds and operations."""
    request, train, zero = planner.request, planner.train, planner.zero
    memory = planner.memory(zero, planner.pairs)
    kept = planner.states(zero, planner.accumulation)
    step = planner.step(zero, planner.ranks, planner.pairs, planner.accumulation)
    steps, _ = schedule_steps(train, request.optim, request.corpus)
    pairs_per_s = train.global_batch / step.seconds
    seconds = steps * step.seconds
    flops = planner.whole.flops().step
    return {
        "gpu": request.card_name,
        "gpus": request.gpus,
        "ranks": planner.ranks * planner.split,
        "replicas": planner.ranks,
        "tensor_parallel": planner.split,
        "nodes": request.nodes,
        "precision": planner.precision,
        "zero_stage": zero.stage,
        "parameters": planner.whole.parameters | {"total": planner.whole.total},
        "flops_per_pair": flops | {"total": sum(flops.values())},
        "global_batch": train.global_batch,
        "micro_batch": planner.pairs,
        "accumulation": planner.accumulation,
        "largest_micro_batch": planner.largest,
        "held_micro_batch": planner.held(),
        "memory_bytes": {name: value for name, value in vars(memory).items() if name != "moment"}
        | {"total": memory.total, "usable": planner.room},
        "offloaded_bytes": {"host": kept.host, "disk": kept.disk},
        "ranks_per_node": request.per_node,
        "peak_in": memory.moment,
        "fits": memory.total <= planner.room,
        "mfu": request.mfu,
        "pairs_per_s": pairs_per_s,
        "step_seconds": {
            "compute": step.compute,
            "update": step.update,
            "communication": step.communication,
            "exposed": step.exposed,
            "total": step.seconds,
            "exchanges": {name: vars(exchange) for name, exchange in step.exchanges.items()},
        },
        "sent_bytes": step.sent,
        "contrast": vars(planner.contrast()),
        "steps": steps,
        "epochs": steps * train.global_batch / request.corpus,
        "hours": seconds / 3600,
        "gpu_hours": seconds / 3600 * request.gpus,
        "efficiency": efficiency(planner),
        "agreement": {str(gpus): dict(zip(("messages", "seconds"), agreement(gpus), strict=True)) for gpus in SCALES},
        "advice": advice(planner),
    }


def efficiency(planner: Planner) -> dict[str, dict[str, float]]:
    """By stage and number of GPUs, at the planned micro-batch and accumulation: the global batch grows with them."""
    return {
        f"zero{stage}": {
            str(gpus): planner.step(zero, max(1, gpus // planner.split), planner.pairs, planner.accumulation).efficiency
            for gpus in SCALES
        }
        for stage, zero in (
            (stage, planner.zero if stage == planner.zero.stage else planner.stage(stage)) for stage in planner.stages
        )
    }


def as_text(plan: dict[str, Any]) -> str:
    """The plan of `as_json`, in lines of at most 120 characters."""
    parameters, flops, memory, step = (
        plan[key] for key in ("parameters", "flops_per_pair", "memory_bytes", "step_seconds")
    )
    lines = [
        f"{plan['ranks']} x {plan['gpu']} on {counted(plan['nodes'], 'node')}, {plan['precision']}, "
        f"ZeRO-{plan['zero_stage']}, "
        + (f"layers split by {plan['tensor_parallel']}, " if plan["tensor_parallel"] > 1 else "")
        + f"global batch {plan['global_batch']} = {plan['replicas']} x {plan['accumulation']} x "
        f"{plan['micro_batch']} pairs",
        "",
        f"parameters     {parameters['total'] / 1e6:,.1f} M   ({_parts(parameters, 1e6, 1)})",
        f"GFLOP per pair {flops['total'] / 1e9:,.1f}   ({_parts(flops, 1e9, 1)})",
        "",
        f"memory of a GPU at the peak of a step (its {plan['peak_in']}), in GB, of {memory['usable'] / GB:.1f} usable",
        *(f"  {KIND_NAMES.get(kind, kind):19}{_gigabytes(memory[kind])}" for kind in KINDS),
        f"  {'all':19}{memory['total'] / GB:8.2f}   {'fits' if plan['fits'] else 'DOES NOT FIT'}; "
        f"the largest micro-batch is {plan['largest_micro_batch'] or 'none'} of this global batch, "
        f"{plan['held_micro_batch'] or 'none'} of any",
        *_offloaded(plan["offloaded_bytes"], plan["ranks_per_node"]),
        "",
        f"step           {step['total'] * 1e3:,.1f} ms: computing {step['compute'] * 1e3:,.1f} at "
        f"{plan['mfu'] * 100:.0f} % MFU, update {step['update'] * 1e3:,.1f}, communication "
        f"{step['communication'] * 1e3:,.1f} of which {step['exposed'] * 1e3:,.1f} exposed",
        *_exchanges(step["exchanges"], plan["contrast"]),
        f"pairs/s        {plan['pairs_per_s']:,.0f}",
        f"the run        {counted(plan['steps'], 'step')}, {plan['epochs']:.3g} epochs: {plan['hours']:,.1f} hours, "
        f"{plan['gpu_hours']:,.0f} GPU-hours",
        "",
        _efficiency(plan["efficiency"]),
        _agreement(plan["agreement"]),
        "",
        *(f"- {sentence}" for sentence in plan["advice"]),
    ]
    return "\n".join(lines) + "\n"


def _offloaded(kept: dict[str, float], ranks: int) -> list[str]:
    """What the ranks of a node have in its memory and on its disk."""
    places = {"host": "of memory", "disk": "on disk"}
    each = [f"{kept[kind] * ranks / GB:,.1f} GB {place}" for kind, place in places.items() if kept[kind]]
    return [f"offloaded      {' and '.join(each)} on each node, of its {ranks} ranks together"] if each else []


def _gigabytes(value: float) -> str:
    return "  < 0.01" if 0 < value < 0.005 * GB else f"{value / GB:8.2f}"


def _exchanges(exchanges: dict[str, dict[str, float]], contrast: dict[str, Any]) -> list[str]:
    """What is exchanged, in milliseconds, and how the features of all pairs are."""
    lines = [
        f"  {name:13}{exchange['seconds'] * 1e3:8.2f} ms of which {exchange['exposed'] * 1e3:.2f} exposed"
        for name, exchange in exchanges.items()
        if exchange["seconds"]
    ]
    if count := contrast["blocks"]:
        blocks = "one block" if count == 1 else f"{count:,} blocks"
        lines.append(f"contrast       {contrast['sent'] / 1e6:,.1f} MB through each GPU, of all features in {blocks}")
    return lines


def _parts(values: dict[str, float], unit: float, digits: int) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value / unit:.{digits}f}" for name, value in values.items() if name != "total"
    )


def _agreement(table: dict[str, dict[str, float]]) -> str:
    """How long the ranks' exchange over their hosts takes, beneath the efficiency."""
    return f"  {'agreement, ms':13}" + "".join(f"{row['seconds'] * 1e3:8.2f}" for row in table.values()) + "   hidden"


def _efficiency(table: dict[str, dict[str, float]]) -> str:
    scales = list(next(iter(table.values())))
    lines = [
        "GPUs           " + "".join(f"{int(gpus):>8,}" for gpus in scales) + "   (the global batch grows with them)"
    ]
    for name, row in table.items():
        lines.append(
            f"  {name.replace('zero', 'ZeRO-'):13}" + "".join(f"{value * 100:7.0f}%" for value in row.values())
        )
    return "\n".join(lines)
