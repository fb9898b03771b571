"""Weights at rest: a run's folder, read without DeepSpeed. Its layout: mvlm/checkpoint/layout.py."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer

from mvlm.checkpoint.description import CONFIG, TEXT_ENCODER, TOKENIZER, described_in
from mvlm.checkpoint.layout import EMA, UNREADABLE, WEIGHTS, Entry, find_checkpoint, read_index
from mvlm.config.schema import Config, Model, load_stored_config
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.finetune import HEAD, TaskModel
from mvlm.model.finite import require_finite
from mvlm.model.maskvlm import MaskVLM

M_co = TypeVar("M_co", bound=Encoders, covariant=True)


@dataclass(frozen=True)
class Loaded(Generic[M_co]):
    """A trained model as evaluation and export use it."""

    model: M_co
    tokenizer_folder: Path
    config: Config
    step: int
    averaged: bool = False  # it has the average of the run's weights (train.ema)
    fingerprint: str = ""  # of the weights' files


@dataclass(frozen=True)
class TensorFile:
    """An open file of a checkpoint, of which one tensor is read at a time."""

    path: Path
    file: safe_open

    def tensor(self, title: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(title)
        return tensor

    def weight(self, name: str) -> Tensor:
        """Raises: UserError: it holds NaN or infinity."""
        weight = self.tensor(name)
        require_finite(name, weight, str(self.path))
        return weight

    def shape(self, title: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(title).get_shape())


def _index(checkpoint: Path) -> list[Entry]:
    try:
        return read_index(checkpoint)
    except UNREADABLE as error:
        raise UserError(f"{checkpoint / 'index.json'} is damaged ({error}): use another checkpoint.") from None


@contextmanager
def open_tensors(checkpoint: Path, kind: str) -> Iterator[dict[str, TensorFile]]:
    """The open file of every tensor of one kind: `files[title].tensor(title)` reads that one alone.

    Args:
        kind: WEIGHTS, MOMENTS or EMA.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    files: dict[str, TensorFile] = {}
    with ExitStack() as stack:
        for entry in _index(checkpoint):
            if entry.file.startswith(f"{kind}-"):
                file = stack.enter_context(_open(checkpoint / entry.file, entry.bytes))
                files |= dict.fromkeys(file.keys(), TensorFile(checkpoint / entry.file, file))
        yield files


def is_averaged(checkpoint: Path) -> bool:
    """Whether an average of the weights lies beside them."""
    return any(entry.file.startswith(f"{EMA}-") for entry in _index(checkpoint))


def fingerprint(checkpoint: Path) -> str:
    """Equal exactly when the weights, and the average of them, are the same files; whether moments lie there or not."""
    weights = [entry for entry in _index(checkpoint) if entry.file.startswith((f"{WEIGHTS}-", f"{EMA}-"))]
    return hashlib.sha256("".join(sorted(entry.sha256 for entry in weights)).encode()).hexdigest()


@contextmanager
def open_weights(checkpoint: Path) -> Iterator[dict[str, TensorFile]]:
    """What to evaluate a checkpoint by or start another run from: the average of each weight, where there is one.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    with open_tensors(checkpoint, WEIGHTS) as weights, open_tensors(checkpoint, EMA) as averages:
        yield weights | averages


def _open(path: Path, length: int) -> safe_open:
    size = path.stat().st_size if path.exists() else None
    if size != length:
        found = "is missing" if size is None else f"has {size} bytes and not {length}"
        raise UserError(f"{path} {found}: the checkpoint is damaged; use another.")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): use another checkpoint.") from None


def load_weights(model: Encoders, checkpoint: Path) -> None:
    """Fill a model with a checkpoint's weights, the average of them where there is one.

    Raises:
        UserError: a parameter is missing, unknown, of another shape or no finite number.
    """
    wanted = dict(model.named_parameters())
    with open_weights(checkpoint) as files:
        for name, file in files.items():
            tensor, parameter = file.weight(name), wanted.pop(name, None)
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


def load_run(path: str | Path, device: torch.device | str = "cpu") -> Loaded[MaskVLM]:
    """Load the model of a run folder (its latest checkpoint) or of one checkpoint in it, ready to evaluate.

    Everything is read from the run's folder; no hub is asked.

    Raises:
        UserError: there is none, it is damaged, or it was fine-tuned for another thing than retrieval.
    """
    loaded = _load(path, device)
    if not isinstance(loaded.model, MaskVLM):
        task = loaded.config.task.name
        raise UserError(
            f"{path} was fine-tuned for {task}: evaluate {task}, or give a run of pretraining or retrieval."
        )
    return Loaded(
        loaded.model, loaded.tokenizer_folder, loaded.config, loaded.step, loaded.averaged, loaded.fingerprint
    )


def load_task_run(path: str | Path, task: str, device: torch.device | str = "cpu") -> Loaded[TaskModel]:
    """The same of a run fine-tuned for a task, "vqa", "nlvr2" or "entailment"."""
    loaded = _load(path, device)
    if not isinstance(loaded.model, TaskModel) or loaded.config.task.name != task:
        raise UserError(
            f"{path} is a run of {loaded.config.task.name} and not of {task}: "
            f"fine-tune it first, by task.name = {task!r} and checkpoint.init."
        )
    return Loaded(
        loaded.model, loaded.tokenizer_folder, loaded.config, loaded.step, loaded.averaged, loaded.fingerprint
    )


def _load(path: str | Path, device: torch.device | str) -> Loaded[Encoders]:
    checkpoint = find_checkpoint(path)
    folder = described_in(checkpoint)
    config = load_stored_config(folder / CONFIG)
    model = offline_model(config, folder, _classes(checkpoint) if config.task.is_labelled else 0)
    load_weights(model, checkpoint)
    try:
        step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]
    except UNREADABLE as error:
        raise UserError(f"{checkpoint / 'state.json'} is damaged ({error}): use another checkpoint.") from None
    averaged, of_weights = is_averaged(checkpoint), fingerprint(checkpoint)
    return Loaded(model.to(device).eval(), folder / TOKENIZER, config, step, averaged, of_weights)


def offline_model(config: Config, folder: Path, classes: int) -> Encoders:
    """A run's model without its weights, of the tokenizer and the text encoder that a folder describes.

    Args:
        classes: that it chooses among; 0 = no such task.
    """
    described = dataclasses.replace(config, model=with_described_text(config.model, folder))
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
    model: Encoders
    if classes:
        model = TaskModel(described, tokenizer, classes, load_weights=False)
    else:
        model = MaskVLM(described, tokenizer, load_weights=False)
    model.config = config
    return model


def with_described_text(config: Model, folder: Path) -> Model:
    """The same model with the text encoder that a folder describes."""
    return dataclasses.replace(config, text=str(folder / TEXT_ENCODER), text_weights="pretrained")


def _classes(checkpoint: Path) -> int:
    """How many the last layer of a checkpoint's head has."""
    with open_tensors(checkpoint, WEIGHTS) as files:
        biases = sorted(name for name in files if name.startswith(HEAD) and name.endswith(".bias"))
        if not biases:
            raise UserError(f"{checkpoint} holds no head of a task: it is another model's; use its TOML.")
        return files[biases[-1]].shape(biases[-1])[0]
