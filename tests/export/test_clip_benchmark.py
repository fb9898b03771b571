"""CLIP_benchmark's retrieval with an exported model gives the results of its features."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvlm.export.clip_benchmark import load_exported
from tests.conftest import ROOT

CAPTIONS = [["a red dog", "the dog is red"], ["a blue circle"], ["a green star"], ["a cat", "one cat"]]


def pictures() -> list[Image.Image]:
    drawn = np.random.default_rng(0).integers(0, 256, (len(CAPTIONS), 40, 30, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in drawn]


def test_padding_does_not_change_a_sentence(exported: Path) -> None:
    model, view, tokens = load_exported("any", str(exported), None, "cpu")
    assert view(pictures()[0]).dtype == torch.uint8
    with torch.no_grad():
        alone = model.encode_text(tokens(["a cat"]))
        beside = model.encode_text(tokens(["a cat", "the star is green and the sky is blue"]))
    torch.testing.assert_close(alone[0], beside[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.norm(dim=-1), torch.ones(1))


@pytest.mark.campaign
def test_retrieval_is_that_of_the_features(exported: Path) -> None:
    retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    model, view, tokens = load_exported("any", str(exported), None, "cpu")
    images = torch.stack([view(picture) for picture in pictures()])
    batches = [(images[start : start + 2], CAPTIONS[start : start + 2]) for start in (0, 2)]
    found = retrieval.evaluate(model, batches, tokens, "cpu", amp=False, recall_k_list=[1, 2])
    with torch.no_grad():
        similar = (
            model.encode_text(tokens([caption for captions in CAPTIONS for caption in captions]))
            @ model.encode_image(images).T
        )
    owner = torch.tensor([row for row, captions in enumerate(CAPTIONS) for _ in captions])
    for k in (1, 2):
        right = (similar.topk(k, dim=1).indices == owner[:, None]).any(1).float().mean()
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(float(right))


@pytest.mark.campaign
def test_the_command_knows_the_model_type() -> None:
    pytest.importorskip("clip_benchmark")
    words = [sys.executable, "-m", "mvlm.export.clip_benchmark", "eval", "--model_type", "other"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 2 and "mvlm" in ended.stderr.splitlines()[-1]
