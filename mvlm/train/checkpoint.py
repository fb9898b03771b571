"""Checkpoints that any number of ranks and any ZeRO stage can go on from. Layout: mvlm/model/weights.py.

Each rank writes the parameters dealt to it, as whole fp32 tensors by name, beside the final place; when all are
written, hashed and synced, rank 0 renames the folder and only then points `latest` at it. A kill at any moment
leaves the checkpoint before it untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mvlm import dist
from mvlm.config import Checkpoint
from mvlm.errors import UserError
from mvlm.model.weights import CHECKPOINTS, LATEST, MOMENTS, WEIGHTS, find_checkpoint, tensors
from mvlm.train import engine as engine_module
from mvlm.train.engine import Engine


@dataclass(frozen=True)
class TrainState:
    """All that a run must remember beside tensors; the same on every rank."""

    step: int  # updates made
    samples_seen: int
    seed: int
    manifest_fingerprint: str


def save(engine: Engine, state: TrainState, run: Path, config: Checkpoint) -> Path:
    """Write `run/checkpoints/step_N`, make it the latest and delete older ones beyond `config.keep`.

    Raises:
        UserError: on every rank, when any could not write; what was latest stays so.
    """
    folder = run / CHECKPOINTS / f"step_{state.step:08d}"
    partial = folder.with_suffix(".partial")
    if dist.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    weights, moments = _own_tensors(engine)
    entries, failure = [], None
    try:
        for kind, content in ((WEIGHTS, weights), (MOMENTS, moments)):
            if content:
                name = f"{kind}-{dist.rank():05d}-of-{dist.world():05d}.safetensors"
                entries.append(_write(partial / name, content))
    except Exception as error:  # safetensors has its own kinds beside OSError
        failure = f"rank {dist.rank()}: {error}"
    gathered = dist.gather_objects((entries, failure))
    if dist.rank() == 0:
        failures = [failure for _, failure in gathered if failure]
        try:
            if not failures:
                files = [entry for entries, _ in gathered for entry in entries]
                _publish(partial, folder, {"files": files}, state)
                _prune(folder, config.keep)
        except OSError as error:
            failures = [str(error)]
        failure = failures[0] if failures else None
        if failure:
            shutil.rmtree(partial, ignore_errors=True)
    failure = dist.broadcast_object(failure)
    if failure:
        raise UserError(f"The checkpoint {folder} could not be written ({failure}): free some room and start again.")
    return folder


def _own_tensors(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """This rank's share of the whole tensors, on the CPU; every rank takes part in gathering each."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for number, (name, whole) in enumerate(engine.whole_tensors()):
        if number % dist.world() == dist.rank():
            for key, tensor in whole.items():
                content, title = (weights, name) if key == "weight" else (moments, f"{key}/{name}")
                content[title] = tensor.detach().to("cpu", copy=True).contiguous()
    return weights, moments


def _write(path: Path, content: dict[str, Tensor]) -> dict[str, Any]:
    save_file(content, path)
    path.chmod(0o644)  # safetensors makes it for its owner alone
    with open(path, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _publish(partial: Path, folder: Path, index: dict[str, Any], state: TrainState) -> None:
    write_durably(partial / "state.json", json.dumps(asdict(state)))
    write_durably(partial / "index.json", json.dumps(index, indent=1))
    if folder.exists():  # a repeated step, after going on from an older checkpoint
        shutil.rmtree(folder)
    os.rename(partial, folder)
    write_durably(folder.parent / LATEST, folder.name)


def write_durably(path: Path, text: str) -> None:
    """Replace a file's content in one rename, synced."""
    beside = path.with_name(path.name + ".partial")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _prune(newest: Path, keep: int) -> None:
    """Delete all but the last `keep`; first what lies beyond `newest`, left by a run that was gone back on."""
    found = newest.parent.glob("step_????????")
    for old in sorted(found, key=lambda folder: (folder.name <= newest.name, folder.name))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def restore(engine: Engine, checkpoint: Path) -> TrainState:
    """Fill the engine from a checkpoint of any layout; all ranks must call.

    Raises:
        UserError: the checkpoint is damaged or another model's.
    """
    state = _read_state(checkpoint)
    moments = dict(_grouped_moments(checkpoint))
    if state.step and not moments:
        raise UserError(
            f"{checkpoint} holds no optimizer moments, so the run cannot go on exactly: "
            "start a new run with checkpoint.init to take its weights alone."
        )
    if moments:
        engine.prepare_state(state.step)
    parameters = dict(engine.parameters())
    for name, weight in tensors(checkpoint, WEIGHTS):
        parameter = parameters.pop(name, None)
        shape = None if parameter is None else getattr(parameter, "ds_shape", parameter.shape)
        if parameter is None or shape != weight.shape:
            raise UserError(
                f"{checkpoint}: {name} of shape {tuple(weight.shape)} does not fit this model; use its TOML."
            )
        engine.write(parameter, {"weight": weight, **moments.get(name, {})})
    if parameters:
        raise UserError(f"{checkpoint} lacks {next(iter(parameters))}: it is another model's; use its TOML.")
    return state


def _read_state(checkpoint: Path) -> TrainState:
    """The state, once every file has the hash it was written with; the ranks share the reading."""
    damaged = None
    try:
        state = TrainState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
        entries = json.loads((checkpoint / "index.json").read_text(encoding="utf-8"))["files"]
        for entry in entries[dist.rank() :: dist.world()]:
            with open(checkpoint / entry["file"], "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    damaged = f"{entry['file']} has another SHA-256 than index.json says"
    except (OSError, ValueError, TypeError, KeyError) as error:
        damaged = f"{type(error).__name__}: {error}"
    if found := next(filter(None, dist.gather_objects(damaged)), None):
        raise UserError(f"{checkpoint} is damaged ({found}): set checkpoint.resume to another checkpoint.")
    return state


def _grouped_moments(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for title, tensor in tensors(checkpoint, MOMENTS):
        key, name = title.split("/", 1)
        if key in engine_module.MOMENTS:
            grouped.setdefault(name, {})[key] = tensor
    return grouped


def starting_point(run: Path, config: Checkpoint) -> tuple[Path | None, bool]:
    """Where training begins, and whether it goes on exactly.

    1. `checkpoint.resume`, when given. 2. The latest checkpoint in the run folder. 3. The weights alone of
    `checkpoint.init`. 4. Scratch (None).
    """
    if config.resume:
        return find_checkpoint(config.resume), True
    if (run / CHECKPOINTS / LATEST).is_file():
        return find_checkpoint(run), True
    if config.init:
        return find_checkpoint(config.init), False
    return None, False
