"""Soups: a checkpoint whose weights are the mean of several others' (Wortsman et al., arXiv 2203.05482)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvlm.checkpoint.description import CONFIG, DESCRIPTION, TEXT_ENCODER, TOKENIZER, described_in
from mvlm.checkpoint.integrity import make_whole, read_state
from mvlm.checkpoint.layout import WEIGHTS, Entry, find_damaged_file
from mvlm.checkpoint.tensors import open_tensors, open_weights, stream_tensors
from mvlm.config.load import load_stored_config
from mvlm.errors import UserError, cannot_write
from mvlm.runtime.storage import sync

FILE = f"{WEIGHTS}-00000-of-00001.safetensors"
PARTS = "averaged.json"
"""A file that only soups have: the checkpoints that were averaged."""
STARTS = ("vision_weights", "text_weights", "cross_init_std", "temperature", "classifier_init", "text")
"""Keys of [model] that say what a run began with, or what the text encoder's folder describes."""
REMEDY = "free some room, or give --out another place"


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Write a checkpoint of the mean weights, computed in double precision and stored in single.

    A checkpoint with an EMA of its weights (train.ema) contributes the EMA. The soup has no moments, so a run can
    start from it by checkpoint.init but cannot resume it. Its settings, tokenizer and text encoder are the first
    checkpoint's.

    Args:
        out: a folder that does not exist yet.

    Raises:
        UserError: there are fewer than two checkpoints, one is damaged or of another model, or `out` exists or cannot
            be written.
    """
    if len(checkpoints) < 2:
        raise UserError("A mean needs two checkpoints or more: name several.")
    if out.exists():
        raise UserError(f"{out} exists already: give --out a new folder.")
    first = checkpoints[0]
    for checkpoint in checkpoints:
        if reason := find_damaged_file(checkpoint, hashes=True):
            raise UserError(f"{checkpoint} is damaged ({reason}): use another.")
    for other in checkpoints[1:]:
        require_alike(first, other)
    partial = out.with_name(f"{out.name}.partial")
    try:
        _write(checkpoints, partial)
        os.rename(partial, out)
        sync(out.parent)
    except OSError as error:
        raise cannot_write(str(out), error, REMEDY) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # there only after a failure


def require_alike(first: Path, other: Path) -> None:
    """Raise `UserError` if two checkpoints differ in their models or tokenizers."""
    one, two = (_meaning(checkpoint) for checkpoint in (first, other))
    if differs := [name for name in one | two if one.get(name) != two.get(name)]:
        name = differs[0]
        raise UserError(
            f"{other} is not of the same model as {first}: {name} is {two.get(name)!r} and not {one.get(name)!r}; "
            "average only checkpoints of one model."
        )


def _meaning(checkpoint: Path) -> dict[str, Any]:
    """All that determines what the weights compute, and every weight's shape."""
    folder = described_in(checkpoint)
    config = load_stored_config(folder / CONFIG)
    meaning: dict[str, Any] = {f"model.{k}": v for k, v in asdict(config.model).items() if k not in STARTS}
    meaning |= {"task.name": config.task.name, "objectives.contrastive": config.objectives.contrastive}
    for kind in (TOKENIZER, TEXT_ENCODER):
        for path in sorted((folder / kind).iterdir()):
            if DESCRIPTION.fullmatch(f"{kind}/{path.name}"):
                meaning[f"{kind}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    with open_tensors(checkpoint, WEIGHTS) as files:
        return meaning | {f"the shape of {name}": tensor.shape for name, tensor in sorted(files.items())}


def _write_mean(checkpoints: Sequence[Path], path: Path) -> Entry:
    """One tensor of each checkpoint is in memory at a time."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_weights(checkpoint)) for checkpoint in checkpoints]

        def mean(name: str) -> Tensor:
            return (sum((each[name].weight().double() for each in opened), torch.zeros(())) / len(opened)).float()

        return stream_tensors(path, {name: opened[0][name].shape for name in sorted(opened[0])}, mean)


def _write(checkpoints: Sequence[Path], partial: Path) -> None:
    """Write the soup's folder."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mean = [_write_mean(checkpoints, partial / FILE)]
    folder = described_in(checkpoints[0])
    described = (path for path in folder.rglob("*") if DESCRIPTION.fullmatch(path.relative_to(folder).as_posix()))
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in described}
    newest = max((read_state(checkpoint) for checkpoint in checkpoints), key=lambda state: state.step)
    contents[PARTS] = json.dumps([str(checkpoint) for checkpoint in checkpoints], indent=1).encode()
    make_whole(partial, mean, contents, replace(newest, best=None), None)
