"""Soups of checkpoints: `mvlm average`."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mvlm.__main__ import main
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.tensors import WEIGHTS, open_tensors
from mvlm.pretrained.runs import load_run
from tests.conftest import ROOT
from tests.training.conftest import TrainHere, one_rank, train_here  # noqa: F401 - fixtures


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    with open_tensors(checkpoint, WEIGHTS) as files:
        return {name: file.tensor() for name, file in files.items()}


def test_a_soup_is_the_mean_and_is_evaluated(
    train_here: TrainHere,  # noqa: F811
    scenes: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, out = tmp_path / "run", tmp_path / "soups/mine"
    assert train_here(run, "train.steps=4", "checkpoint.every=2", "checkpoint.keep=3", "eval.limit=8") == 0
    parts = [run / f"checkpoints/step_0000000{step}" for step in (0, 2, 4)]
    data = ["--data", str(scenes / "eval"), "--json", str(tmp_path / "found.json")]
    assert main(["average", *map(str, parts[:2]), str(run), "--out", str(out), *data]) == 0
    soup, own = weights(out), [weights(part) for part in parts]
    assert soup.keys() == own[0].keys()
    for name, weight in soup.items():
        mean = torch.stack([each[name].double() for each in own]).mean(0)
        assert weight.dtype == torch.float32 and torch.equal(weight, mean.float())
    assert find_checkpoint(out) == out and load_run(out).step == 4
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == [*map(str, parts), str(out)] and all("eval/mean_recall" in each for each in found.values())
    assert "the soup" in capfd.readouterr().out

    assert main(["average", str(run), "--out", str(tmp_path / "one")]) == 1
    assert main(["average", str(run), str(parts[1]), "--out", str(out)]) == 1
    assert main(["average", str(run), str(parts[1]), "--out", str(tmp_path / "b"), "--json", "found.json"]) == 1
    assert not (tmp_path / "b").exists()
    said = capfd.readouterr().err
    assert "--json writes what is measured on --data: give --data too" in said
    assert "A mean needs two checkpoints" in said and f"{out} exists already: give --out a new folder" in said


def test_checkpoints_of_different_models_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours, changed = ROOT / "tests/training/kept_runs/zero0", tmp_path / "changed"
    shutil.copytree(ours, changed)
    toml = (changed / "config.toml").read_text()
    (changed / "config.toml").write_text(toml.replace("cross_heads = 2", "cross_heads = 1"))
    assert main(["average", str(ours), str(changed), "--out", str(tmp_path / "soup")]) == 1
    (said,) = (line for line in capfd.readouterr().err.splitlines() if "is not of the same model" in line)
    assert said.endswith("model.cross_heads is 1 and not 2; average only checkpoints of one model.")
    assert not (tmp_path / "soup").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours, diverged = ROOT / "tests/training/kept_runs/zero0", tmp_path / "diverged"
    shutil.copytree(ours, diverged)
    (file,) = diverged.rglob("weights-*.safetensors")
    content = file.read_bytes()[:-4] + struct.pack("<f", math.nan)
    index = file.with_name("index.json")
    digests = [hashlib.sha256(each).hexdigest() for each in (file.read_bytes(), content)]
    index.write_text(index.read_text().replace(*digests))
    file.write_bytes(content)
    assert main(["average", str(ours), str(diverged), "--out", str(tmp_path / "soup")]) == 1
    assert "holds NaN in 1 of its" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["diverged"]


def test_a_soup_that_fills_the_disk_leaves_nothing_on_it(
    mount_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    run, disk = str(ROOT / "tests/training/kept_runs/zero0"), mount_disk("40k")
    assert main(["average", run, run, "--out", str(disk / "soup")]) == 1
    assert "soup could not be written ([Errno 28] No space left on device): free some room" in capfd.readouterr().err
    assert not list(disk.iterdir())
