"""Whether a kept proof has shown that compiled updates equal eager ones and are faster, on which `train.compile =
"auto"` relies (`PROOF` in mvlm/training/compilation.py)."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.gpu.record import Line

APART = 1e-2
"""How far the losses of the first updates may differ, relatively: they are in bf16."""


def why_not_compiled(lines: Iterable[Line]) -> str | None:
    """What in the lines of full_step.py speaks against compiling; None = nothing, and it has been measured."""
    updates = {(line["pairs"], line["way"]): line for line in lines if line.get("kind") == "update"}
    both = [pairs for pairs, way in updates if way == "compiled" and "pairs_per_s" in updates.get((pairs, "eager"), {})]
    if not both:
        return "compiled updates have not been measured beside eager ones"
    for pairs in both:
        eager, compiled = updates[pairs, "eager"], updates[pairs, "compiled"]
        if "pairs_per_s" not in compiled:
            return f"of {pairs} pairs: {compiled.get('failure', compiled.get('cannot', 'it has not ended'))}"
        if not _alike(eager["losses"], compiled["losses"]):
            return f"of {pairs} pairs their losses differ"
        if compiled["pairs_per_s"] <= eager["pairs_per_s"]:
            return f"of {pairs} pairs they are no faster"
    return None


def _alike(losses: list[float], others: list[float]) -> bool:
    pairs = list(zip(losses, others, strict=False))
    return bool(pairs) and all(abs(one - other) <= APART * abs(one) for one, other in pairs)
