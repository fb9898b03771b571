"""A tiny model with random weights on a small corpus whose images have one to three captions."""

import json

import numpy as np
import torch
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.config.schema import Config, Data, Model, Objectives, Run
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.pretrained.encoders import build_model

CAPTIONS = [
    ["a red dog", "the dog is red"],
    ["a hundred cats, one Red cat and one red mouse"],
    ["blue circle top left", "a circle", "something blue"],
    ["green star", "the star is green and the sky is blue"],
    ["a cat"],
    ["a red dog beside a blue cat"],
    ["a yellow star above a green circle"],
]

CONFIG = Config(
    run=Run(seed=5),
    data=Data(text_length=12),
    model=Model(
        vision_weights="random",
        vision_args={"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
        image_size=16,
        text="roberta",
        text_weights="random",
        text_args={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        },
        cross_depth=1,
        decoder_depth=1,
        cross_heads=2,
        cross_init_std=0.3,  # large, so that the other modality matters without training
        contrastive_width=16,
    ),
    objectives=Objectives(image_mask_block=1),
)


def make_shards(folder, captions, size=16):
    """Random pictures with these captions, sharded by the command."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number, of_image in enumerate(captions):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(json.dumps({"id": str(number), "image": f"{number}.png", "captions": of_image}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    assert data_tools(["shard", "folder", str(folder), "--out", str(folder / "shards")]) == 0
    return folder / "shards"


def make_tokenizer():
    return train_tokenizer([caption for of_image in CAPTIONS for caption in of_image], 320)


def make_model(config=CONFIG):
    torch.manual_seed(0)
    return build_model(config.blueprint, make_tokenizer()).eval()
