"""A run as a Hugging Face model folder: configuration, weights, tokenizer, processor, code and card."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvlm.checkpoint.description import CONFIG, TEXT_ENCODER, TOKENIZER, described_in
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.tensors import StoredTensor, open_weights, stream_tensors
from mvlm.config.load import load_stored_config
from mvlm.config.schema import Blueprint
from mvlm.data.samples.labelled import class_names
from mvlm.data.samples.tokenizer import disk_errors, load_tokenizer
from mvlm.errors import UserError
from mvlm.export.configuration import MaskVLMConfig, MaskVLMTaskConfig
from mvlm.export.processing import MaskVLMImageProcessor, MaskVLMProcessor
from mvlm.export.sources import remote_code

SHARD_BYTES = 2_000_000_000
"""Bytes of weights per file."""

PREFIX = "network."
"""Prefix of every parameter's name: the attribute that holds the model in the exported classes."""

NOT_OF_AN_ENCODER = {"model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"}
"""Keys of an encoder's config.json that do not describe its shape."""


def export_folder(run: Path, out: Path, card: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of a run or of one checkpoint as a folder, whole or not at all.

    One tensor is in memory at a time.

    Args:
        card: the content of README.md.

    Raises:
        UserError: there is no such run, it is damaged, or the folder cannot be written.
    """
    checkpoint = find_checkpoint(run)
    folder = described_in(checkpoint)
    config = load_stored_config(folder / CONFIG)
    tokenizer = load_tokenizer(str(folder / TOKENIZER))
    with whole_folder(out) as temporary:
        _describe(config.blueprint, config.data.text_length, folder, tokenizer).save_pretrained(temporary)
        write_weights(checkpoint, temporary, shard_bytes)
        _write_processor(config.model.image_size, config.data.text_length, tokenizer, temporary)
        for name, source in remote_code().items():
            (temporary / name).write_text(source, encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")


def write_weights(checkpoint: Path, out: Path, shard_bytes: int) -> None:
    """Write a checkpoint's weights (their average, if it has one) in files of about `shard_bytes`, and their index."""
    with open_weights(checkpoint) as files:
        shards: list[list[str]] = [[]]
        filled = 0
        for name, stored in files.items():
            size = 4 * math.prod(stored.shape)  # checkpoints are fp32
            if shards[-1] and filled + size > shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        places: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            file_name = f"model{part}.safetensors"
            _write_weights_file(out / file_name, {PREFIX + name: files[name] for name in names})
            places |= dict.fromkeys((PREFIX + name for name in names), file_name)
    if len(shards) > 1:
        total = sum((out / name).stat().st_size for name in set(places.values()))
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_weights_file(path: Path, weights: Mapping[str, StoredTensor]) -> None:
    shapes = {title: stored.shape for title, stored in weights.items()}
    stream_tensors(path, shapes, lambda title: weights[title].weight(), {"format": "pt"})


def _describe(blueprint: Blueprint, text_length: int, folder: Path, tokenizer: Any) -> MaskVLMConfig:
    """config.json, with nothing in it that depends on files of this machine."""
    text = json.loads((folder / TEXT_ENCODER / "config.json").read_text(encoding="utf-8"))
    settings = dataclasses.replace(
        blueprint.model,
        vision_weights="random",
        text=text["model_type"],
        text_weights="random",
        text_args={key: value for key, value in text.items() if key not in NOT_OF_AN_ENCODER},
    )
    tables = {
        "model": dataclasses.asdict(settings),
        "objectives": dataclasses.asdict(blueprint.objectives),
        "task": dataclasses.asdict(blueprint.task),
        "data": {"text_length": text_length},
    }
    auto = {
        "AutoConfig": "configuration_maskvlm.MaskVLMConfig",
        "AutoModel": "modeling_maskvlm.MaskVLMModel",
        "AutoProcessor": "processing_maskvlm.MaskVLMProcessor",
    }
    given: dict[str, Any] = {
        "settings": json.loads(json.dumps(tables)),
        "vocabulary": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    if not blueprint.task.is_labelled:
        return MaskVLMConfig(**given, architectures=["MaskVLMModel"], auto_map=auto)
    classes = class_names(blueprint.task.name, folder / TOKENIZER)
    model = "modeling_maskvlm.MaskVLMForImageTextClassification"
    auto |= {"AutoConfig": "configuration_maskvlm.MaskVLMTaskConfig", "AutoModel": model}
    auto["AutoModelForVisualQuestionAnswering"] = model
    return MaskVLMTaskConfig(
        **given,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        architectures=["MaskVLMForImageTextClassification"],
        auto_map=auto,  # type: ignore[call-arg]  # PretrainedConfig takes any
    )


def _write_processor(image_size: int, text_length: int, tokenizer: Any, out: Path) -> None:
    tokenizer.model_max_length = text_length
    images = MaskVLMImageProcessor(image_size)
    MaskVLMProcessor(images, tokenizer, text_length).save_pretrained(out)
    described = out / "processor_config.json"
    content = json.loads(described.read_text(encoding="utf-8"))
    content["auto_map"] = {
        "AutoProcessor": "processing_maskvlm.MaskVLMProcessor",
        "AutoImageProcessor": "processing_maskvlm.MaskVLMImageProcessor",
    }
    content["image_processor"]["auto_map"] = {"AutoImageProcessor": "processing_maskvlm.MaskVLMImageProcessor"}
    described.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, renamed to `out` when everything is written."""
    if out.exists():
        raise UserError(f"{out} exists: give --out a new folder, or remove that one first.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        with disk_errors():
            yield temporary
        _set_modes(temporary)
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): give --out another place.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _set_modes(folder: Path) -> None:
    """Give every file the mode that the umask allows: safetensors makes its files readable only by their owner."""
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
