"""Exported graphs of the dual encoder, run by onnxruntime and by torch alone, against the model."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from mvlm.__main__ import main
from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.pretrained.runs import load_run
from tests.evaluate.tiny import CONFIG

SENTENCES = ["a red dog", "the star is green and the sky is blue"]


@pytest.fixture(scope="module")
def given():
    return torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["transformer", pytest.param("dictionary", marks=pytest.mark.campaign)])
def dual(request, made_run):
    """A run of each kind of image encoder and pooling; its tokenizer cuts and pads, as all-MiniLM-L6-v2's does."""
    kinds = {"transformer": {}}
    kinds["dictionary"] = {"vision": "patch_dictionary", "vision_args": {"embed_dim": 32}, "text_pool": "mean"}
    run = made_run(**kinds[request.param])
    stored = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    stored.enable_truncation(128)
    stored.enable_padding(length=128)
    stored.save(str(run / "tokenizer" / "tokenizer.json"))
    return run


@pytest.fixture(scope="module")
def onnx(dual, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "out"
    assert main(["export", str(dual), "--out", str(out), "--format", "onnx"]) == 0
    return out


def tokens(folder):
    """The inputs that someone without mvlm gives to the text encoder."""
    inputs = json.loads((folder / "inputs.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=inputs["pad_token_id"])
    encoded = tokenizer.encode_batch(SENTENCES)
    return np.array([each.ids for each in encoded]), np.array([each.attention_mask for each in encoded])


@torch.no_grad()
def features(run, given, ids, mask):
    model = load_run(run).model
    text_BLD = model.encode_text(torch.from_numpy(ids), torch.from_numpy(mask).bool())
    return model.project_image(model.encode_image(given)).numpy(), model.project_text(text_BLD).numpy()


def test_onnx_computes_the_models_features(dual, onnx, given):
    ids, mask = tokens(onnx)
    image, text = (onnxruntime.InferenceSession(onnx / f"{side}.onnx") for side in ("image", "text"))
    found = image.run(["features"], {"pixel_values": given.numpy()})[0]
    read = text.run(["features"], {"input_ids": ids, "attention_mask": mask})[0]
    for ours, theirs in zip(features(dual, given, ids, mask), (found, read), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_the_exported_tokenizer_truncates_as_the_run_does(dual, onnx):
    tokenizer = Tokenizer.from_file(str(onnx / "tokenizer.json"))
    ours = CaptionTokenizer(load_tokenizer(str(dual / "tokenizer")), CONFIG.data.text_length)
    for sentence in (SENTENCES[0], " ".join(SENTENCES)):
        assert tokenizer.encode(sentence).ids == ours.encode(sentence).tolist()


@pytest.mark.campaign
def test_torch_export_computes_the_models_features(dual, tmp_path, given):
    assert main(["export", str(dual), "--out", str(tmp_path / "out"), "--format", "torch"]) == 0
    ids, mask = tokens(tmp_path / "out")
    image, text = (torch.export.load(tmp_path / "out" / f"{side}.pt2").module() for side in ("image", "text"))
    with torch.no_grad():
        found, read = image(given).numpy(), text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    for ours, theirs in zip(features(dual, given, ids, mask), (found, read), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_a_fine_tuned_model_has_no_dual_encoder(made_run, tmp_path, capsys):
    assert main(["export", str(made_run("vqa")), "--out", str(tmp_path / "out"), "--format", "onnx"]) == 1
    assert (
        "was fine-tuned for vqa and has no vectors to compare images and texts by: evaluate or predict vqa, export"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--format", "onnx"]) == 1
    assert "ONNX needs onnxruntime: pip install" in capsys.readouterr().err
