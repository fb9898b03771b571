"""If weights are NaN or infinite before the first step, tensor and file are named, not samples and learning rate."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.tensors import write_tensors
from mvlm.errors import UserError
from mvlm.export.folder import export_folder
from mvlm.pretrained.runs import load_run
from tests.training.conftest import TrainHere

BIAS = "vision.vit.blocks.0.mlp.fc1.bias"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def poison(checkpoint: Path, kind: str, name: str, value: float) -> Path:
    """Write such a weight into a checkpoint whose hashes still match; the file's path."""
    path = next(checkpoint.glob(f"{kind}-*"))
    tensors = {title: tensor.clone() for title, tensor in load_file(path).items()}  # load_file maps the file itself
    tensors[name].view(-1)[3] = value
    entry = asdict(write_tensors(path, tensors))
    index = json.loads((checkpoint / "index.json").read_text())
    index["files"] = [entry if each["file"] == path.name else each for each in index["files"]]
    (checkpoint / "index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_runs_own_checkpoint_is_refused_however_it_is_used(run: Path, tmp_path: Path, value: float) -> None:
    path = poison(find_checkpoint(run), "weights", BIAS, value)
    kind = "NaN" if math.isnan(value) else "infinity"
    with pytest.raises(UserError) as error:
        load_run(run)
    assert str(error.value) == f"{BIAS} of {path} holds {kind} in 1 of its 128 values: use another checkpoint."
    with pytest.raises(UserError, match=f"{BIAS} of {path} holds {kind}"):
        export_folder(run, tmp_path / "out", "card")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_a_run_resumes_or_starts_from_is_refused(train_here: TrainHere, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_here(run, "train.steps=1", "train.ema=0.9") == 0
    checkpoint = find_checkpoint(run)
    path = poison(checkpoint, "ema", BIAS, math.nan)
    before = sorted(run.rglob("*"))
    for folder, *words in ((run, "train.ema=0.9"), (tmp_path / "new", f"checkpoint.init={run}")):
        with pytest.raises(UserError, match=rf"{BIAS} of {path} holds NaN in 1 of its \d+ values"):
            train_here(folder, *words)
    assert sorted(run.rglob("*")) == before
    path = poison(checkpoint, "weights", BIAS, math.inf)
    with pytest.raises(UserError, match=rf"{BIAS} of {path} holds infinity"):
        train_here(run, "train.ema=0.9")


def test_another_projects_checkpoint_is_refused_if_the_weight_is_used(
    train_here: TrainHere, run: Path, tmp_path: Path
) -> None:
    """Unused tensors may hold anything, such as a mask of minus infinity."""
    prefix = "vision.vit."
    weights = load_file(next(find_checkpoint(run).glob("weights-*")))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    tensors = {name.replace("patch_embed.patch_embed.", "patch_embed."): tensor for name, tensor in tensors.items()}
    tensors.pop("patch_embed.mask_token", None)
    file = tmp_path / "theirs.safetensors"
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | {"head.mask": torch.full((3,), -math.inf)}, file)
    words = [f"model.vision_weights={file}", "train.steps=1"]
    assert train_here(tmp_path / "sound", *words) == 0
    tensors["blocks.0.mlp.fc1.bias"][0] = math.nan
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"blocks.0.mlp.fc1.bias of {file} .* holds NaN in 1 of"):
        train_here(tmp_path / "new", *words)


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl", "quarantine.jsonl"])
def test_a_folder_in_place_of_a_list_is_refused(train_here: TrainHere, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name} .*Is a directory.*: move away what lies there"):
        train_here(tmp_path / "run", "train.steps=1")
