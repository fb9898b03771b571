"""Encoders filled from other projects' checkpoints compute what their models do; mismatches are refused."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import others
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvlm.config.load import config_from_dict, load_config
from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder
from mvlm.pretrained.encoders import build_image_encoder, build_text_encoder
from mvlm.pretrained.key_maps import CLIP, IMAGENET, Pixels
from mvlm.pretrained.load import fill_image_encoder, fill_text_encoder, with_encoders_of
from mvlm.pretrained.read import read_tensors
from mvlm.pretrained.report import LoadReport
from tests.conftest import ROOT, TINY

VOCABULARY, POSITIONS = 320, 20
TOML_PIXELS = "pretrained_cfg_overlay={{mean=[{}, {}, {}], std=[{}, {}, {}]}}"


def overlay(pixels: Pixels) -> str:
    return TOML_PIXELS.format(*pixels[0], *pixels[1])


def configuration(*overrides: str) -> Any:
    return load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *overrides])


def vision(
    where: Path | str,
    pixels: Pixels | None = IMAGENET,
    size: int = 48,
    more: str = "",
    *overrides: str,
    width: int = 32,
) -> Model:
    said = f", {overlay(pixels)}" if pixels else ""
    args = f"{{patch_size=16, embed_dim={width}, depth=2, num_heads=2{said}{more}}}"
    return configuration(
        f"model.vision_weights={where}", f"model.vision_args={args}", f"model.image_size={size}", *overrides
    ).model


def text(where: Path | str, kind: str = "bert", layers: int = 2, *overrides: str, **more: int) -> Model:
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS} | more
    args = "{" + ", ".join(f"{name}={value}" for name, value in sizes.items()) + "}"
    return configuration(
        f"model.text={kind}", f"model.text_weights={where}", f"model.text_args={args}", *overrides
    ).model


def filled_vision(config: Model) -> tuple[VisionEncoder, LoadReport]:
    encoder = build_image_encoder(config)
    drawn = torch.get_rng_state()
    report = fill_image_encoder(encoder, config)
    assert torch.equal(torch.get_rng_state(), drawn)  # so that later modules keep their random weights
    return encoder.eval(), report


def filled_text(config: Model, tokenizer: PreTrainedTokenizerBase) -> tuple[TextEncoder, LoadReport]:
    encoder = build_text_encoder(config, tokenizer)
    return encoder.eval(), fill_text_encoder(encoder, config)


def images(size: int = 48) -> Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def words(length: int = 9) -> Tensor:
    return torch.randint(5, 300, (2, length), generator=torch.Generator().manual_seed(2))


def pixels_of(image: Tensor, pixels: Pixels) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in pixels)
    return (image / 255 - mean) / std


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config", "__doc__": "As yacs', a dictionary with attributes."})


def saved(folder: Path, model: torch.nn.Module, form: str) -> Path:
    """A checkpoint in the form in which each project writes it."""
    state, file = model.state_dict(), folder / "checkpoint.pth"
    if form == "safetensors":
        save_file(state, file := folder / "model.safetensors")
    elif form == "mae":
        torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3, model="mae")}, file)
    elif form == "distributed":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    elif form == "legacy":
        torch.save({"model": state}, file, _use_new_zipfile_serialization=False)
    elif form == "sharded":
        names = sorted(state)
        map_ = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
        for part in set(map_.values()):
            save_file({name: state[name] for name in names if map_[name] == part}, folder / part)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": map_}))
        return folder
    else:
        torch.save({"model": state, "config": {"image_res": 256}, "epoch": 29}, file)
    return file


@pytest.mark.parametrize("form", ["mae", "distributed", "legacy", "sharded", "safetensors"])
def test_a_checkpoint_of_mae(tmp_path: Path, form: str) -> None:
    theirs = others.Mae(3).eval()
    encoder, report = filled_vision(vision(saved(tmp_path, theirs, form)))
    same(encoder(images()), theirs(pixels_of(images(), IMAGENET)))
    assert "(MAE)" in report.source and not report.fresh and not report.resized and not report.left
    assert len(report.matched) == len(dict(theirs.named_parameters())) - report.others
    assert report.others == len([name for name in theirs.state_dict() if "decoder" in name or name == "mask_token"])


def test_positions_of_patches_are_resized_as_in_timm(tmp_path: Path) -> None:
    theirs = others.Mae(3).eval()
    encoder, report = filled_vision(vision(saved(tmp_path, theirs, "mae"), size=64))
    assert report.resized == {"pos_embed": ((1, 10, 32), (1, 17, 32))}
    assert "resized from 1 x 10 x 32 to 1 x 17 x 32" in str(report)
    theirs.pos_embed.data = resample_abs_pos_embed(theirs.pos_embed.data, [4, 4])
    same(encoder(images(64)), theirs(pixels_of(images(64), IMAGENET)))


@pytest.mark.parametrize("relative", [False, True])
def test_simmim_and_its_mask_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """With positions as a plain ViT, with relative biases as timm's BEiT; the file may hold pickled settings."""
    theirs = others.SimMim(3, relative).eval()
    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, module := ModuleType(name))
    monkeypatch.setattr(module, "CfgNode", CfgNode, raising=False)
    torch.save({"model": theirs.state_dict(), "config": CfgNode(DATA=CfgNode(SIZE=192))}, tmp_path / "ckpt.pth")
    more, own = ", init_values=0.1", []
    if relative:
        with pytest.raises(UserError, match=r"rel_pos_bias\.relative_position_bias_table.*beit_base_patch16_224"):
            filled_vision(vision(tmp_path / "ckpt.pth", more=more))
        more += ", use_abs_pos_emb=false, use_rel_pos_bias=false, use_shared_rel_pos_bias=true"
        own = ["model.vision=beit_base_patch16_224"]
    else:
        with pytest.raises(UserError, match=r"ls1\.gamma.*init_values"):
            filled_vision(vision(tmp_path / "ckpt.pth"))
    encoder, _ = filled_vision(vision(tmp_path / "ckpt.pth", IMAGENET, 48, more, *own))
    mask = torch.rand(2, 9) < 0.6
    same(encoder(images(), mask), theirs.encoder(pixels_of(images(), IMAGENET), mask))
    same(encoder(images()), theirs.encoder(pixels_of(images(), IMAGENET)))


@pytest.mark.parametrize("form", ["folder", "bare"])
@pytest.mark.parametrize("kind", ["vit", "mae"])
def test_a_vit_of_transformers(tmp_path: Path, kind: str, form: str) -> None:
    """As transformers saves it, and its state_dict alone, in which transformers 5 has other names."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    decoder = {f"decoder_{name}": 16 for name in ("hidden_size", "intermediate_size")}
    decoder |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    if kind == "vit":
        theirs = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=48, layer_norm_eps=1e-6))
        expected = theirs.eval()(pixels_of(images(), IMAGENET)).last_hidden_state
    else:
        settings = transformers.ViTMAEConfig(**sizes, **decoder, image_size=48, mask_ratio=0.0, layer_norm_eps=1e-6)
        theirs = transformers.ViTMAEForPreTraining(settings)
        noise = torch.arange(9).repeat(2, 1).float()  # nothing hidden, nothing shuffled
        expected = theirs.eval().vit(pixels_of(images(), IMAGENET), noise=noise).last_hidden_state
    theirs.save_pretrained(tmp_path / "vit")
    encoder, report = filled_vision(vision(tmp_path / "vit" if form == "folder" else saved(tmp_path, theirs, "albef")))
    same(encoder(images()), expected)
    assert report.others == len([name for name in theirs.state_dict() if name.startswith(("decoder", "pooler"))])


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_pixels_are_those_that_a_folder_describes(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    folder = tmp_path / "vit"
    if kind == "transformers":
        transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=48)).save_pretrained(folder)
        transformers.ViTImageProcessor(image_mean=CLIP[0], image_std=CLIP[1]).save_pretrained(folder)
    else:
        arguments = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
        pixels = {"mean": CLIP[0], "std": CLIP[1]}
        theirs = timm.create_model("vit_base_patch16_224", **arguments, pretrained_cfg_overlay=pixels)
        timm.models.save_for_hf(theirs, folder, model_args=arguments)
    for place in (folder, folder / ("pytorch_model.bin" if kind == "timm" else "model.safetensors")):
        with pytest.raises(UserError, match=r"mean \[0\.48145466, .*pretrained_cfg_overlay = \{mean = \[0\.48145466"):
            filled_vision(vision(place, pixels=None))
        filled_vision(vision(place, CLIP))
    (folder / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": null}')
    (folder / "config.json").write_text("[]")
    filled_vision(vision(folder, pixels=None))


def test_a_beit_of_transformers_is_refused(tmp_path: Path) -> None:
    """Its queries and values have biases and its keys none."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    settings = transformers.BeitConfig(**sizes, image_size=48, use_absolute_position_embeddings=True)
    transformers.BeitModel(settings).save_pretrained(tmp_path / "beit")
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.bias is 96 here and missing there"):
        filled_vision(vision(tmp_path / "beit"))


@pytest.mark.parametrize("blip", [False, True])
def test_albef_and_blip_fill_both_encoders(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, blip: bool) -> None:
    theirs = others.Albef(3, VOCABULARY, POSITIONS, blip).eval()
    file = saved(tmp_path, theirs, "albef")
    layers = 4 if blip else 2
    model = with_encoders_of(configuration().model, str(file))
    assert model.vision_weights == model.text_weights == str(file)
    encoder, _ = filled_vision(vision(file, CLIP))
    same(encoder(images()), theirs.visual_encoder(pixels_of(images(), CLIP)))
    reader, _ = filled_text(text(file, layers=layers), tokenizer)
    same(reader(words(), torch.ones(2, 9, dtype=torch.bool)), theirs.bert(words(), layers))
    if not blip:
        with pytest.raises(UserError, match=r"2 layers that read text alone.*num_hidden_layers = 2"):
            filled_text(text(file, layers=4), tokenizer)
    with pytest.raises(UserError, match=r"'bert' and model\.text is a 'roberta'"):
        filled_text(text(file, "roberta"), tokenizer)


def bert_of_transformers(kind: str, tokenizer: PreTrainedTokenizerBase, masked: bool = True) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    settings = transformers.AutoConfig.for_model(
        kind, **sizes, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, pad_token_id=tokenizer.pad_token_id
    )
    build = transformers.AutoModelForMaskedLM if masked else transformers.AutoModel
    return build.from_config(settings).eval()


@pytest.mark.parametrize("form", ["safetensors", "bin", "old names", "pretrained"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_text_encoder_of_transformers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: str, form: str
) -> None:
    theirs = bert_of_transformers(kind, tokenizer)
    folder = tmp_path / kind
    theirs.save_pretrained(folder)
    if form in ("bin", "old names"):
        state = theirs.state_dict()
        if form == "old names":
            state = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in state.items()}
            state = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in state.items()}
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    given = ("pretrained", str(folder)) if form == "pretrained" else (folder, kind)
    encoder, report = filled_text(text(given[0], given[1], pad_token_id=tokenizer.pad_token_id), tokenizer)
    expected = getattr(theirs, kind)(words()).last_hidden_state
    same(encoder(words(), torch.ones(2, 9, dtype=torch.bool)), expected)
    assert not report.fresh


@pytest.mark.parametrize("count", [12, 50])
@pytest.mark.parametrize(("kind", "first"), [("bert", 0), ("roberta", 2), ("mpnet", 2)])
def test_positions_of_tokens_are_cut_or_repeated(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: str, first: int, count: int
) -> None:
    theirs = bert_of_transformers(kind, tokenizer)
    assert tokenizer.pad_token_id == 1
    theirs.save_pretrained(tmp_path / kind)
    old = getattr(theirs, kind).embeddings.position_embeddings.weight
    rows = [n if n < POSITIONS else first + (n - first) % (POSITIONS - first) for n in range(count)]
    for place, name in ((tmp_path / kind, kind), ("pretrained", tmp_path / kind)):
        encoder, report = filled_text(text(place, str(name), max_position_embeddings=count), tokenizer)
        assert torch.equal(encoder.model.embeddings.position_embeddings.weight, old[rows])
        assert list(report.resized.values()) == [((POSITIONS, 32), (count, 32))]
    length = min(count, 30) - first
    assert torch.isfinite(encoder(words(length), torch.ones(2, length, dtype=torch.bool))).all()


def test_a_folder_saved_by_timm(tmp_path: Path) -> None:
    """Given as vision_weights or as model.vision; the classifier is left out."""
    sizes = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
    theirs = timm.create_model("vit_base_patch16_224", **sizes).eval()
    folder = tmp_path / "vit"
    timm.models.save_for_hf(theirs, folder, model_args={k: v for k, v in sizes.items() if k != "num_classes"})
    expected = theirs.forward_features(pixels_of(images(), ((0.5,) * 3, (0.5,) * 3)))
    half = ((0.5,) * 3, (0.5,) * 3)
    given, report = filled_vision(vision(folder, half))
    same(given(images()), expected)
    assert report.left == ["head.bias", "head.weight"]
    for size, resized in ((48, []), (64, ["pos_embed"])):
        settings = configuration(
            f"model.vision={folder}", "model.vision_weights=pretrained", "model.vision_args={}",
            f"model.image_size={size}",
        )  # fmt: skip
        own, report = filled_vision(settings.model)
        assert list(report.resized) == resized
        if size == 48:
            same(own(images()), expected)
    with torch.no_grad():
        theirs.blocks[1].attn.proj.weight[0, 0] = math.nan
    timm.models.save_for_hf(theirs, folder, model_args={k: v for k, v in sizes.items() if k != "num_classes"})
    for model in (vision(folder, half), settings.model):
        with pytest.raises(UserError, match=r"blocks.1.attn.proj.weight of .*vit.* holds NaN in 1 of its 1024 values"):
            filled_vision(model)


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the hub client's cache without the network."""
    theirs = others.Mae(3).eval()
    snapshot = tmp_path / "models--somebody--mae/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--somebody--mae/refs").mkdir()
    (tmp_path / "models--somebody--mae/refs/main").write_text("0123")
    saved(snapshot, theirs, "safetensors")
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    encoder, _ = filled_vision(vision("hf-hub:somebody/mae"))
    same(encoder(images()), theirs(pixels_of(images(), IMAGENET)))
    with pytest.raises(UserError, match="hf-hub:nobody/mae cannot be fetched"):
        filled_vision(vision("hf-hub:nobody/mae"))


def refused(tmp_path: Path, change: Callable[[dict[str, Tensor]], None], model: Callable[[Path], Model]) -> str:
    state = others.Mae(3).state_dict()
    change(state)
    torch.save({"model": state}, tmp_path / "changed.pth")
    with pytest.raises(UserError) as error:
        filled_vision(model(tmp_path / "changed.pth"))
    assert "\n" not in str(error.value) and "changed.pth" in str(error.value)
    return str(error.value)


def test_mismatches_are_named(tmp_path: Path) -> None:
    def nothing(state: dict[str, Tensor]) -> None: ...

    wide = refused(tmp_path, nothing, lambda path: vision(path, width=48))
    assert "30 of its 30 tensors, cls_token is 1 x 1 x 48 here and 1 x 1 x 32 there" in wide
    assert "set model.vision and model.vision_args" in wide
    lacking = refused(tmp_path, lambda state: state.pop("blocks.1.mlp.fc1.weight"), vision)
    assert "1 of its" in lacking and "blocks.1.mlp.fc1.weight is 128 x 32 here and missing there" in lacking
    more = refused(tmp_path, lambda state: state.update(reg_token=torch.zeros(1, 4, 32)), vision)
    assert "has reg_token, which model.vision lacks" in more
    odd = refused(tmp_path, lambda state: state.update(pos_embed=torch.zeros(1, 8, 32)), vision)
    assert "pos_embed is 1 x 10 x 32 here and 1 x 8 x 32 there" in odd
    other = refused(tmp_path, nothing, lambda path: vision(path, pixels=None))
    assert "was trained on pixels of mean [0.485, 0.456, 0.406]" in other
    none = refused(tmp_path, lambda state: (state.clear(), state.update(a=torch.zeros(1))), vision)
    assert "holds no image encoder of a known kind (its tensors begin with a)" in none


class Opener:
    """Runs a command if unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /nowhere/at/all",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": others.Mae(3).state_dict(), "args": Opener()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth holds more than tensors, posix\.system, and.*save_file"):
        read_tensors(str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("cut.pth", b"PK\x03\x04 and no more", "not a checkpoint that torch can read"),
        ("text.bin", b"not at all", "text.bin"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "is damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../a.safetensors"}}', "is not a file beside it"),
        ("model.safetensors.index.json", b"[]", "is damaged"),
        ("other", b"", "has none of"),
    ],
)
def test_files_that_are_not_checkpoints_are_named(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    place = tmp_path if name in ("other", "model.safetensors.index.json") else tmp_path / name
    with pytest.raises(UserError, match=word) as error:
        read_tensors(str(place))
    assert "\n" not in str(error.value)


def test_tensors_without_known_names_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_tensors(str(tmp_path / "list.pth"))
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"checkpoint\.init=.*holds no encoder of a known kind"):
        with_encoders_of(configuration().model, str(tmp_path / "a.safetensors"))


def test_text_encoders_that_do_not_fit_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    theirs = bert_of_transformers("roberta", tokenizer, masked=False)
    theirs.save_pretrained(tmp_path / "roberta")
    with pytest.raises(UserError, match=r"holds a 'roberta' and model\.text 'bert' is a 'bert'"):
        filled_text(text(tmp_path / "roberta"), tokenizer)
    file = tmp_path / "roberta/model.safetensors"
    with pytest.raises(UserError, match=r"word_embeddings.* is 300 x 32 here and 320 x 32 there.*vocab_size"):
        filled_text(text(file, "roberta", vocab_size=300), tokenizer)
    for where, name in ((file, "roberta"), ("pretrained", str(tmp_path / "roberta"))):
        with pytest.raises(UserError, match=r"16 of its 53 tensors, encoder\.layer\.2.* missing there"):
            filled_text(text(where, name, layers=3), tokenizer)


def test_the_examples_of_the_page_are_valid() -> None:
    page = (ROOT / "docs/initialising.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 9
    for example in examples:
        config_from_dict(tomllib.loads(example), "docs/initialising.md")
