"""What must hold between the attempts of a run and when it has finished, checked from its files alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.faults.injections import POISONS
from benchmarks.faults.runs import BATCH, Run

PARTS = ("loss", "image", "text", "itc", "itm", "grad_norm", "lr", "encoder_lr")
CLOSE = 1e-4
"""Relative tolerance for losses computed on another layout than the reference's."""


def between_attempts(run: Run) -> list[str]:
    """What is wrong with the latest checkpoint while nothing is running."""
    name = run.latest()
    if name is None:
        return []
    folder, problems = run.checkpoints / name, []
    try:
        state = json.loads((folder / "state.json").read_text())
        if folder.name != f"step_{state['step']:08d}":
            problems.append(f"{name} holds step {state['step']}")
        for entry in json.loads((folder / "index.json").read_text())["files"]:
            if hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() != entry["sha256"]:
                problems.append(f"{name}/{entry['file']} is not what was written")
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"latest is not whole: {error}")
    return problems


def ended(run: Run, reference: Run, exact: bool) -> dict[str, Any]:
    """How a finished run compares with its undisturbed reference.

    Args:
        exact: the run always had the reference's layout; otherwise losses need only be close.
    """
    found, expected = _last_lines(run), _last_lines(reference)
    wrong = sorted(step for step in expected if not _equal(found.get(step, {}), expected[step], exact))
    seen, wanted = _samples(run), _samples(reference)
    poisoned = {position // BATCH for kind in POISONS for position in run.faults.get(kind, [])}
    problems = between_attempts(run)
    problems += [f"{path.name} is left" for path in run.checkpoints.glob("*partial*")]
    problems += [f"steps {sorted(found)[:3]}... are not 1..{run.steps}"] if list(found) != list(expected) else []
    if skipped_batches(run) != sorted(poisoned):
        problems.append(f"skipped.jsonl lists the batches {skipped_batches(run)}, poisoned were {sorted(poisoned)}")
    if exact and not run.faults and (other := _repeated_otherwise(run, expected)):
        problems.append(f"steps {other[:5]} had other losses before they were repeated")
    if exact and (names := _differing(_tensors(run), _tensors(reference))):
        problems.append(f"{len(names)} tensors at the end are not the reference's, {names[0]} first")
    if exact and _state(run) != _state(reference):
        problems.append(f"the state at the end is {_state(run)}, and not {_state(reference)}")
    return {
        "losses equal": not wrong,
        "wrong steps": wrong[:5],
        "largest difference": max((_difference(found[s], expected[s]) for s in expected if s in found), default=None),
        "samples lost": len(wanted.keys() - seen.keys()),
        "samples in other places": sum(seen[position] != wanted[position] for position in wanted.keys() & seen.keys()),
        "problems": problems,
    }


def skipped_batches(run: Run) -> list[int]:
    """Numbers in the stream of the global batches that the run reports as skipped."""
    path = run.run / "skipped.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted({json.loads(line)["position"] // BATCH for line in lines})


def _last_lines(run: Run) -> dict[int, dict[str, Any]]:
    """The last line that was logged for each step, in the order of steps."""
    lines = {line["step"]: line for line in run.metrics() if "loss" in line}
    return dict(sorted(lines.items()))


def _equal(found: dict[str, Any], expected: dict[str, Any], exact: bool) -> bool:
    if exact:
        return all(found.get(part) == expected[part] for part in PARTS)
    return bool(found) and _difference(found, expected) <= CLOSE


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of any loss."""
    return max(abs(found[part] - expected[part]) / abs(expected[part]) for part in PARTS[:5])


def _repeated_otherwise(run: Run, expected: dict[int, dict[str, Any]]) -> list[int]:
    return [line["step"] for line in run.metrics() if "loss" in line and not _equal(line, expected[line["step"]], True)]


def _samples(run: Run) -> dict[int, tuple[int, int]]:
    """Position -> its row and the step that trained on it, as each step was made for the last time."""
    last = [{line["step"]: line for line in run.stream(rank)} for rank in range(2)]
    return {
        position: (row, step)
        for step, of_rank_0 in last[0].items()
        for rank in range(of_rank_0["world"])
        if step in last[rank]
        for position, row in zip(last[rank][step]["positions"], last[rank][step]["rows"], strict=True)
    }


def _tensors(run: Run) -> dict[str, Tensor]:
    """Weights and moments of the latest checkpoint."""
    files = sorted((run.checkpoints / str(run.latest())).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _state(run: Run) -> dict[str, Any]:
    """The latest checkpoint's, except which batches were skipped: one absent from the stream cannot be skipped."""
    path = run.checkpoints / str(run.latest()) / "state.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {key: value for key, value in state.items() if key != "skipped"}


def _differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    if found.keys() != expected.keys():
        return sorted(found.keys() ^ expected.keys())
    return [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
