"""Weights at rest: a run's folder, read without DeepSpeed.

A checkpoint is a folder `checkpoints/step_NNNNNNNN` with `weights-*.safetensors` (fp32, by parameter name),
`moments-*.safetensors` (AdamW's, as `exp_avg/<name>` and `exp_avg_sq/<name>`; may be deleted), `state.json` and
`index.json`, which names every file with its length and hash. `checkpoints/latest` holds the newest one's name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer

from mvlm.config import Config, load_config
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM

CHECKPOINTS = "checkpoints"
LATEST = "latest"
WEIGHTS, MOMENTS = "weights", "moments"


@dataclass(frozen=True)
class Loaded:
    """A trained model as evaluation and export use it."""

    model: MaskVLM
    tokenizer_folder: Path
    config: Config
    step: int


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or a run folder's latest.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if (path / "index.json").is_file():
        return path
    latest = path / CHECKPOINTS / LATEST
    if latest.is_file():
        checkpoint = path / CHECKPOINTS / latest.read_text(encoding="utf-8").strip()
        if (checkpoint / "index.json").is_file():
            return checkpoint
        raise UserError(f"{latest} names {checkpoint.name}, which is no checkpoint: write a whole one's name into it.")
    raise UserError(f"No checkpoint at {path}: give a run folder or one of its checkpoints/step_... folders.")


def tensors(checkpoint: Path, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint's `weights` or `moments` files, one at a time, lengths checked.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    index = json.loads((checkpoint / "index.json").read_text(encoding="utf-8"))
    for entry in index["files"]:
        path = checkpoint / entry["file"]
        if not entry["file"].startswith(kind):
            continue
        size = path.stat().st_size if path.exists() else None
        if size != entry["bytes"]:
            raise UserError(
                f"{path} has {size} bytes and not {entry['bytes']}: the checkpoint is damaged; resume from another."
            )
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): resume from another checkpoint.") from None


def load_weights(model: MaskVLM, checkpoint: Path) -> None:
    """Fill a model with a checkpoint's weights.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    wanted = dict(model.named_parameters())
    for name, tensor in tensors(checkpoint, WEIGHTS):
        parameter = wanted.pop(name, None)
        if parameter is None or parameter.shape != tensor.shape:
            shape = "absent" if parameter is None else f"of shape {tuple(parameter.shape)}"
            raise UserError(f"{checkpoint}: {name} has shape {tuple(tensor.shape)} and is {shape} in this model.")
        parameter.data.copy_(tensor)
    if wanted:
        raise UserError(f"{checkpoint} lacks {len(wanted)} parameters of this model, {next(iter(wanted))} first.")


def load_run(path: str | Path, device: torch.device | str = "cpu") -> Loaded:
    """Load the model of a run folder (its latest checkpoint) or of one checkpoint in it, ready to evaluate.

    Everything is read from the run's folder; no hub is asked.
    """
    checkpoint = find_checkpoint(path)
    run = checkpoint.parent.parent
    config = load_config(run / "config.toml")
    model = offline_model(config, run)
    load_weights(model, checkpoint)
    step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]
    return Loaded(model.to(device).eval(), run / "tokenizer", config, step)


def offline_model(config: Config, run: Path) -> MaskVLM:
    """The run's model without weights, its text encoder described by the folder `run/text_encoder`."""
    settings = dataclasses.replace(config.model, text=str(run / "text_encoder"))
    model = MaskVLM(
        dataclasses.replace(config, model=settings),
        AutoTokenizer.from_pretrained(run / "tokenizer"),
        load_weights=False,
    )
    model.config = config
    return model
