"""A plan for people to read."""

from __future__ import annotations

from typing import Any

GB = 1e9
KINDS = ("weights", "gradients", "optimizer", "activations", "contrastive", "scratch")
KIND_NAMES = {"contrastive": "contrastive logits", "scratch": "temporary"}


def as_text(plan: dict[str, Any]) -> str:
    """Of `plan.as_json`, in lines of at most 120 characters."""
    parameters, flops, memory, step = (
        plan[key] for key in ("parameters", "flops_per_pair", "memory_bytes", "step_seconds")
    )
    lines = [
        f"{plan['ranks']} x {plan['gpu']} on {plan['nodes']} node{'s' * (plan['nodes'] > 1)}, {plan['precision']}, "
        f"ZeRO-{plan['zero_stage']}, global batch {plan['global_batch']} = {plan['ranks']} x {plan['accumulation']} x "
        f"{plan['micro_batch']} pairs",
        "",
        f"parameters     {parameters['total'] / 1e6:,.1f} M   ({_parts(parameters, 1e6, 1)})",
        f"GFLOP a pair   {flops['total'] / 1e9:,.1f}   ({_parts(flops, 1e9, 1)})",
        "",
        f"memory of a GPU at the peak of a step, which is in its {plan['peak_in']}, "
        f"GB of {memory['usable'] / GB:.1f} that can be used",
        *(f"  {KIND_NAMES.get(kind, kind):19}{_gigabytes(memory[kind])}" for kind in KINDS),
        f"  {'all':19}{memory['total'] / GB:8.2f}   {'fits' if plan['fits'] else 'DOES NOT FIT'}; "
        f"the largest micro-batch is {plan['largest_micro_batch'] or 'none'} of this global batch, "
        f"{plan['held_micro_batch'] or 'none'} of any",
        "",
        f"a step         {step['total'] * 1e3:,.1f} ms: computing {step['compute'] * 1e3:,.1f} at "
        f"{plan['mfu'] * 100:.0f} % MFU, update {step['update'] * 1e3:,.1f}, communication "
        f"{step['communication'] * 1e3:,.1f} of which {step['exposed'] * 1e3:,.1f} shows",
        f"pairs/s        {plan['pairs_per_s']:,.0f}",
        f"the run        {plan['steps']:,} steps, {plan['epochs']:.3g} epochs: {plan['hours']:,.1f} hours, "
        f"{plan['gpu_hours']:,.0f} GPU-hours",
        "",
        _efficiency(plan["efficiency"]),
        "",
        *(f"- {sentence}" for sentence in plan["advice"]),
    ]
    return "\n".join(lines) + "\n"


def _gigabytes(value: float) -> str:
    return "  < 0.01" if 0 < value < 0.005 * GB else f"{value / GB:8.2f}"


def _parts(values: dict[str, float], unit: float, digits: int) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value / unit:.{digits}f}" for name, value in values.items() if name != "total"
    )


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
