"""External checkpoints: every tensor of a file, a folder or a hub's repository, by its name there.

Nothing is unpickled but tensors, containers and numbers (torch.load's `weights_only`).
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mvlm.checkpoint.description import TEXT_ENCODER, described_in
from mvlm.checkpoint.layout import INDEX, find_checkpoint, has_checkpoints, run_of_best
from mvlm.checkpoint.tensors import open_weights
from mvlm.errors import UserError, first_line
from mvlm.runtime import hub

HUB = "hf-hub:"
"""Begins the name of a repository on the Hugging Face hub, as in timm: hf-hub:owner/name, or ...@revision."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Looked for in a folder in this order; each may instead be in parts, listed in `<file>.index.json`."""

DESCRIPTIONS = "config.json", "preprocessor_config.json"
"""What says how a model of such a folder is built, and how its images are normalised."""

WRAPPERS = ("model", "state_dict", "module")
"""Keys under which training programs keep the model's tensors beside those of the optimiser and the epoch."""

SETTINGS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),
]
"""What MAE and SimMIM keep beside tensors; both hold plain values, and the second is read as its base class."""


def is_external(place: str) -> bool:
    """Whether it names a file, or a folder or repository that keeps a model's tensors as transformers and timm do."""
    path = Path(place)
    return place.startswith(HUB) or (path.is_file() and not _is_ours(path)) or any(_present(path))


def read_tensors(place: str) -> dict[str, Tensor]:
    """All tensors, by name; bytes are read from the disk as they are used.

    Args:
        place: a .safetensors file, a file of torch.save, a folder of `FILES`, a run of ours or `hf-hub:owner/name`.

    Raises:
        UserError: there is nothing, it is damaged, or it would have to be unpickled.
    """
    path = _local(place)
    if _is_ours(path):
        with open_weights(find_checkpoint(path)) as files:
            return {name: stored.tensor() for name, stored in files.items()}
    if path.is_dir():
        return _read_folder(path, place)
    if not path.is_file():
        raise UserError(f"No weights at {place}: give a file, a folder with one of {', '.join(FILES)}, or {HUB}NAME.")
    return _read_file(path)


def described_kind(place: str) -> str | None:
    """What transformers' config.json in a folder or repository says its model is, such as "roberta"."""
    folder = _local(place)
    if _is_ours(folder):
        folder = described_in(find_checkpoint(folder)) / TEXT_ENCODER
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return kind if isinstance(kind, str) else None


def described_pixels(place: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and standard deviation of pixels that transformers' preprocessor_config.json or timm's config.json
    gives, in a folder or repository or beside a file; None if neither gives three numbers of each."""
    folder = _local(place)
    for name, mean, std in (("preprocessor_config.json", "image_mean", "image_std"), ("config.json", "mean", "std")):
        try:
            settings = json.loads(((folder.parent if folder.is_file() else folder) / name).read_text(encoding="utf-8"))
            settings = settings.get("pretrained_cfg", settings)
            pixels = tuple(tuple(map(float, settings[key])) for key in (mean, std))
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            continue
        if [len(values) for values in pixels] == [3, 3] and settings.get("do_normalize", True):
            return pixels[0], pixels[1]
    return None


def _is_ours(path: Path) -> bool:
    run = run_of_best(path) or path
    return (path / INDEX).is_file() or has_checkpoints(run)


def _local(place: str) -> Path:
    return _download(place.removeprefix(HUB)) if place.startswith(HUB) else Path(place)


def _present(folder: Path) -> Iterator[Path]:
    for name in FILES:
        yield from (path for path in (folder / f"{name}.index.json", folder / name) if path.is_file())


def _read_folder(folder: Path, place: str) -> dict[str, Tensor]:
    path = next(_present(folder), None)
    if path is None:
        raise UserError(f"{place} has none of {', '.join(FILES)}: give the file itself.")
    if path.suffix != ".json":
        return _read_file(path)
    try:
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): fetch the checkpoint again.") from None
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if Path(part).name != part or not (folder / part).is_file():
            raise UserError(f"{path} names {part}, which is not a file beside it: fetch the checkpoint again.")
        tensors |= _read_file(folder / part)
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): fetch it again.") from None
    return _unwrapped(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(SETTINGS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f", {named[1]}" if named else ""
        raise UserError(
            f"{path} holds more than tensors{what}, and would run code when read: if you trust it, save "
            "its tensors alone, by safetensors.torch.save_file(torch.load(FILE, weights_only=False)['model'], "
            "'model.safetensors')."
        ) from None
    except Exception as error:  # torch raises many kinds for a file that it did not write
        raise UserError(
            f"{path} is not a checkpoint that torch can read ({first_line(error)}): "
            "give a .safetensors file or one of torch.save."
        ) from None


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The model's tensors, out of the dictionaries in which they were saved."""
    while isinstance(content, dict):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name: give a checkpoint that has them under {WRAPPERS[0]!r}.")
    if all(name.startswith("module.") for name in tensors):  # of torch's DistributedDataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _download(name: str) -> Path:
    repository, _, revision = name.partition("@")
    hub.ask()
    try:
        for pattern in ("*.safetensors*", "*.bin*"):
            folder = Path(
                snapshot_download(repository, revision=revision or None, allow_patterns=[pattern, *DESCRIPTIONS])
            )
            if any(_present(folder)):
                return folder
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(
            f"{HUB}{name} cannot be fetched ({hub.reason(error)}): check the name, or give a file or folder."
        ) from None
    raise UserError(f"{HUB}{name} has none of {', '.join(FILES)}: give another repository.")
