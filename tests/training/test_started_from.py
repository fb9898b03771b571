"""A run that starts from a checkpoint says what it has read and left out, and needs the file no more afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvlm.data.samples.tokenizer import save_tokenizer, train_tokenizer
from mvlm.errors import UserError
from mvlm.pretrained.key_maps import CLIP
from mvlm.pretrained.runs import load_run
from tests.pretrained.others import Albef
from tests.training.conftest import TrainHere, read_metrics

WORDS, POSITIONS = 320, 40


def words(file: Path) -> list[str]:
    save_tokenizer(train_tokenizer(["a red bus"], 300), file.parent / "tokenizer")
    mean, std = (list(values) for values in CLIP)
    sizes = "hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64"
    return [
        f"checkpoint.init={file}",
        f"data.tokenizer={file.parent}/tokenizer",
        "model.vision_args={patch_size=16, embed_dim=32, depth=2, num_heads=2, "
        f"pretrained_cfg_overlay={{mean={mean}, std={std}}}}}",
        "model.text=bert",
        f"model.text_args={{{sizes}, vocab_size={WORDS}, max_position_embeddings=64}}",
    ]


def test_both_encoders_are_read_from_a_file_that_is_not_needed_again(
    train_here: TrainHere, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    theirs, file, run = Albef(3, WORDS, POSITIONS, blip=False), tmp_path / "albef.pth", tmp_path / "run"
    torch.save({"model": theirs.state_dict(), "epoch": 29}, file)
    given = [*words(file), "optim.encoder_lr=0", "train.freeze=['vision']"]
    assert train_here(run, *given, "train.steps=1") == 0
    said = capfd.readouterr().err
    positions = f"embeddings.position_embeddings.weight resized from {POSITIONS} x 32 to 64 x 32"
    assert f"Image encoder: 30 of 30 tensors from {file} (ALBEF); pos_embed resized from 1 x 10 x 32" in said
    assert f"Text encoder: 37 of 37 tensors from {file} (ALBEF); {positions}" in said
    assert "tensors of cross_image, cross_text, image_decoder" in said and "started_from.json" in said
    image, text = json.loads((run / "started_from.json").read_text())["parts"]
    assert image["resized"] == {"pos_embed": [[1, 10, 32], [1, 5, 32]]} and not image["fresh"] and not text["fresh"]
    assert any("crossattention" in name for name in text["left"])
    saved = load_file(run / "checkpoints/step_00000000/weights-00000-of-00001.safetensors")
    qkv = theirs.visual_encoder.blocks[1].attn.qkv.weight
    assert torch.equal(saved["vision.vit.blocks.1.attn.qkv.weight"], qkv)
    embedding = theirs.text_encoder.bert.embeddings.word_embeddings.weight
    assert torch.equal(saved["text.model.embeddings.word_embeddings.weight"], embedding)
    assert torch.equal(saved["mlm_head.classifier.weight"], embedding)  # it starts from the embedding

    file.unlink()
    assert train_here(run, *given, "train.steps=2") == 0
    assert [line["step"] for line in read_metrics(run)] == [1, 2]
    assert load_run(run).model.vision.mean == CLIP[0]


def test_a_checkpoint_that_is_missing_or_does_not_fit_is_refused(train_here: TrainHere, tmp_path: Path) -> None:
    file = tmp_path / "albef.pth"
    with pytest.raises(UserError, match=r"No checkpoint at .*albef\.pth"):
        train_here(tmp_path / "run", *words(file))
    torch.save({"model": Albef(3, WORDS, POSITIONS, blip=False).state_dict()}, file)
    with pytest.raises(UserError, match=r"does not fit the text encoder: 1 of its 37 tensors, .*word_embeddings"):
        train_here(tmp_path / "run", *[word.replace("vocab_size=320", "vocab_size=310") for word in words(file)])
    assert not (tmp_path / "run/checkpoints").exists()


def test_both_encoders_are_read_from_a_run(train_here: TrainHere, tmp_path: Path) -> None:
    """What is read are its averaged weights, including the mask token."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_here(first, "train.steps=2", "train.ema=0.5") == 0
    weights = [f"model.vision_weights={first}", f"model.text_weights={first}"]
    tokens = f"data.tokenizer={first}/tokenizer"
    with pytest.raises(UserError, match=r"holds a 'roberta' and model\.text 'bert' is a 'bert'"):
        train_here(second, *weights, "model.text=bert", tokens)
    with pytest.raises(UserError, match="trains new tokens, which the weights of the text encoder"):
        train_here(second, *weights, "model.text=bert")
    assert train_here(second, *weights, f"model.text={first}/text_encoder", tokens, "train.steps=1") == 0
    image, _ = json.loads((second / "started_from.json").read_text())["parts"]
    assert len(image["matched"]) == 19 and "patch_embed.mask_token" in image["matched"]
    started = load_file(second / "checkpoints/step_00000000/weights-00000-of-00001.safetensors")
    expected = dict(load_run(first).model.named_parameters())
    assert sum(name.startswith("vision.") for name in expected) == 19
    for name, weight in expected.items():
        if name.startswith(("vision.", "text.")):
            assert torch.equal(started[name], weight), name
