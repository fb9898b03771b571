"""Models of our own runs: ready to use, or to start another run from. Everything is read from the run's folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import timm
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mvlm.checkpoint.description import CONFIG, TEXT_ENCODER, TOKENIZER, described_in, fingerprint
from mvlm.checkpoint.integrity import read_step
from mvlm.checkpoint.layout import WEIGHTS, find_checkpoint
from mvlm.checkpoint.tensors import is_averaged, open_tensors, open_weights
from mvlm.config.load import load_stored_config
from mvlm.config.schema import Blueprint, Data, Eval, Model
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.finetune import HEAD, TaskModel
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.vision import VisionEncoder
from mvlm.pretrained.encoders import build_model
from mvlm.pretrained.positions import fit_image_positions, fit_text_positions
from mvlm.pretrained.report import InitReport, LoadReport

M_co = TypeVar("M_co", bound=Encoders, covariant=True)


@dataclass(frozen=True)
class Loaded(Generic[M_co]):
    """A trained model as evaluation and export use it.

    Attributes:
        blueprint: what it was built from, with the task that it was trained for.
        data, eval: of its run; how it is read and evaluated unless something else is asked for.
        ema: the decay of the run's averaged weights (train.ema), if it has those; 0 = it has the weights themselves.
        fingerprint: of the weights' files.
    """

    model: M_co
    tokenizer_folder: Path
    blueprint: Blueprint
    data: Data
    eval: Eval
    step: int
    ema: float = 0.0
    fingerprint: str = ""


def load_run(path: str | Path, device: torch.device | str = "cpu") -> Loaded[MaskVLM]:
    """Load the model of a run folder (its latest checkpoint) or of one checkpoint in it, ready to evaluate.

    Everything is read from the run's folder; no hub is asked.

    Raises:
        UserError: there is none, it is damaged, or it was fine-tuned for something other than retrieval.
    """
    loaded = load_trained(path, device)
    if not isinstance(loaded.model, MaskVLM):
        task = loaded.blueprint.task.name
        raise UserError(
            f"{path} was fine-tuned for {task} and has no vectors to compare images and texts by: evaluate or predict "
            f"{task}, export it as hf, or give a run of pretraining or retrieval."
        )
    return cast(Loaded[MaskVLM], loaded)


def load_task_run(path: str | Path, task: str, device: torch.device | str = "cpu") -> Loaded[TaskModel]:
    """The same for a run fine-tuned for a task, "vqa", "nlvr2" or "entailment"."""
    loaded = load_trained(path, device)
    if not isinstance(loaded.model, TaskModel) or loaded.blueprint.task.name != task:
        raise UserError(
            f"{path} is a run of {loaded.blueprint.task.name} and not of {task}: "
            f"fine-tune it first, by task.name = {task!r} and checkpoint.init."
        )
    return cast(Loaded[TaskModel], loaded)


def load_trained(path: str | Path, device: torch.device | str) -> Loaded[Encoders]:
    """The same for a run of any task."""
    checkpoint = find_checkpoint(path)
    folder = described_in(checkpoint)
    config = load_stored_config(folder / CONFIG)
    with torch.device("cpu"):  # and in fp32, whatever defaults a notebook has set
        model = offline_model(config.blueprint, folder, _classes(checkpoint) if config.task.is_labelled else 0).float()
    load_weights(model, checkpoint)
    step, of_weights = read_step(checkpoint), fingerprint(checkpoint)
    ema = config.train.ema if is_averaged(checkpoint) else 0.0
    model, tokenizer = model.to(device).eval(), folder / TOKENIZER
    return Loaded(model, tokenizer, config.blueprint, config.data, config.eval, step, ema, of_weights)


def offline_model(blueprint: Blueprint, folder: Path, classes: int) -> Encoders:
    """A run's model with random weights, for the tokenizer and the text encoder that a folder describes.

    Args:
        classes: that it chooses among; 0 = no such task.
    """
    return build_model(*offline_parts(blueprint, folder), classes)


def offline_parts(blueprint: Blueprint, folder: Path) -> tuple[Blueprint, PreTrainedTokenizerBase]:
    """What such a model is built from."""
    described = dataclasses.replace(blueprint, model=with_described_text(blueprint.model, folder))
    return described, AutoTokenizer.from_pretrained(folder / TOKENIZER)


def with_described_text(config: Model, folder: Path) -> Model:
    """The same model with the text encoder that a folder describes."""
    return dataclasses.replace(config, text=str(folder / TEXT_ENCODER), text_weights="pretrained")


def _classes(checkpoint: Path) -> int:
    """How many classes the last layer of a checkpoint's head has."""
    with open_tensors(checkpoint, WEIGHTS) as files:
        biases = sorted(name for name in files if name.startswith(HEAD) and name.endswith(".bias"))
        if not biases:
            raise UserError(f"{checkpoint} holds no head of a task: it is another model's; use its TOML.")
        return files[biases[-1]].shape[0]


def load_weights(model: Encoders, checkpoint: Path) -> None:
    """Fill a model with a checkpoint's weights, averaged ones if it has them.

    Raises:
        UserError: a parameter is missing, unknown, of another shape or not finite.
    """
    wanted = dict(model.named_parameters())
    with open_weights(checkpoint) as files:
        for name, stored in files.items():
            tensor, parameter = stored.weight(), wanted.pop(name, None)
            if parameter is None or parameter.shape != tensor.shape:
                shape = "absent" if parameter is None else f"of shape {tuple(parameter.shape)}"
                raise UserError(
                    f"{checkpoint} does not fit its own config.toml: {name} has shape {tuple(tensor.shape)} and is "
                    f"{shape} in the model; use another checkpoint."
                )
            parameter.data.copy_(tensor)
    if wanted:
        raise UserError(
            f"{checkpoint} lacks {len(wanted)} parameters of the model that its config.toml describes, "
            f"{next(iter(wanted))} first: use another checkpoint."
        )


def take_weights(model: Encoders, checkpoint: Path) -> InitReport:
    """Fill a model with the weights of a run of ours, whose task and image size may have been different.

    If the run kept an average of its weights (`train.ema`), that is what is taken.

    Raises:
        UserError: a parameter outside the head is missing or of another shape, or one is not finite, or the run's
            encoder sees pixels of another mean or standard deviation.
    """
    _check_pixels(model.vision, load_stored_config(described_in(checkpoint) / CONFIG).model, checkpoint)
    report = LoadReport("model", f"{checkpoint}{' (its averaged weights)' if is_averaged(checkpoint) else ''}")
    fits = {"vision.vit.": fit_image_positions(model.vision), "text.model.": fit_text_positions(model.text)}
    with open_weights(checkpoint) as files:
        report.left = sorted({name.split(".")[0] for name in files} - {name for name, _ in model.named_children()})
        for name, parameter in model.named_parameters():
            tensor = files[name].weight() if name in files else None
            here = tuple(parameter.shape)
            there = None if tensor is None else tuple(tensor.shape)
            if tensor is not None and there != here:
                prefix = next(filter(name.startswith, fits), None)
                tensor = fits[prefix](name.removeprefix(prefix), tensor, here) if prefix else None
            if tensor is not None and tuple(tensor.shape) == here:
                parameter.data.copy_(tensor)
                if there == here or there is None:
                    report.matched.append(name)
                else:
                    report.resized[name] = there, here
            elif name.startswith(HEAD):
                report.fresh.append(name)
            else:
                found = "lacks it" if there is None else f"has it of shape {there}"
                raise UserError(
                    f"{checkpoint} cannot be started from: {name} has shape {here} here and the checkpoint {found}; "
                    "give the same [model], objectives.image_masking, objectives.contrastive and tokenizer as in that "
                    "run's config.toml."
                )
    return InitReport((report,), ())


def _check_pixels(vision: VisionEncoder, there: Model, checkpoint: Path) -> None:
    """Two encoders of the same shape may have been trained on pixels of different means."""
    known = timm.get_pretrained_cfg(there.vision)
    if known is None:
        return
    pixels = {"mean": known.mean, "std": known.std} | there.vision_args.get("pretrained_cfg_overlay", {})
    if (tuple(pixels["mean"]), tuple(pixels["std"])) != (vision.mean, vision.std):
        raise UserError(
            f"{checkpoint} cannot be started from: its model.vision {there.vision!r} sees pixels of mean "
            f"{pixels['mean']} and this one of mean {vision.mean}: give model.vision={there.vision}."
        )
