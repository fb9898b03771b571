"""Loading a trained model from a run, a checkpoint, an exported folder or the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME

from mvlm.api.model import TrainedModel
from mvlm.errors import UserError, first_line
from mvlm.evaluate.settings import reading_of
from mvlm.export.auto import register, require_vectors
from mvlm.export.modeling import MaskVLMModel
from mvlm.export.processing import MaskVLMProcessor
from mvlm.pretrained.runs import load_run
from mvlm.runtime import dist
from mvlm.runtime.arguments import path_of


def load(model: str | os.PathLike[str], device: torch.device | str | None = None) -> TrainedModel:
    """A trained model, ready to use.

    Args:
        model: a run folder (its newest checkpoint), `RUN/best`, one of its checkpoints, a folder written by
            `mvlm export`, or the name of one on the Hugging Face hub.
        device: where it computes; None = this machine's accelerator, or else the CPU.

    Raises:
        UserError: there is no model, it is damaged, or it was fine-tuned for a task other than retrieval.
    """
    device, path = dist.device_named(device), path_of("model", model)
    exported = (path / CONFIG_NAME).is_file()
    local = path.exists() or (len(path.parts) > 1 and path.parent.is_dir())
    if not exported and (local or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model))):
        loaded = load_run(path, device)
        return TrainedModel(loaded.model, *reading_of(loaded), loaded)
    return _exported(str(model), device)


def _exported(name: str, device: torch.device) -> TrainedModel:
    register()  # else transformers would ask for permission to run the code beside the weights
    try:
        require_vectors(name)
        with torch.device("cpu"):  # even if a notebook has set another default
            network = MaskVLMModel.from_pretrained(name, use_safetensors=True).network
        processor = MaskVLMProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = first_line(error)
        what = "not a model" if Path(name).exists() else "neither a folder here nor a model on the hub"
        raise UserError(f"{name} is {what} ({first}): give a run folder, or what `mvlm export` wrote.") from None
    return TrainedModel(network.to(device), processor.tokenizer, processor.text_length, processor.image_processor.size)
