"""A reference without training: frozen encoders, and a ridge regression from images' features to sentences'."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from benchmarks.kept import code_version
from benchmarks.small.arms import pretrained
from benchmarks.small.cell import TOML
from benchmarks.small.corpora import SEARCHED
from mvlm.config.load import load_config
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.mixture import Mixture
from mvlm.model.vision import VisionEncoder
from mvlm.pretrained.encoders import build_image_encoder
from mvlm.pretrained.load import fill_image_encoder

BATCH = 32
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
Features = tuple[Tensor, Tensor, Tensor]
"""Images' features ND and captions' CE, and the image of each caption C."""


def measure(shards: Path, home: Path) -> dict[str, Any]:
    """R@10 on the test rows, with the penalty that is best on the rows to choose on."""
    began = time.process_time()
    config = load_config(TOML, pretrained(home))
    images = build_image_encoder(config.model)
    fill_image_encoder(images, config.model)
    texts = AutoModel.from_pretrained(config.model.text).eval()
    tokenizer = load_tokenizer(config.model.text)
    parts: dict[str, Features] = {}
    for part in ("train", "choose", "test"):
        limit = 0 if part == "train" else SEARCHED
        data = EvalDataset(
            Mixture([str(shards / part)]), tokenizer, config.data.text_length, config.model.image_size, limit
        )
        parts[part] = _features(images, texts, data)
    scores = {penalty: _recalls(_fitted(parts["train"], penalty), parts["choose"]) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: sum(scores[penalty]))
    to_text, to_image = _recalls(_fitted(parts["train"], best), parts["test"])
    return {
        "penalty": best,
        "cpu_s": round(time.process_time() - began, 1),
        "commit": code_version(),
        "last": {"image_to_text_itc": to_text, "text_to_image_itc": to_image},
    }


@torch.no_grad()
def _features(images: VisionEncoder, texts: Any, data: EvalDataset) -> Features:
    """For images, the mean of the network's features before they become tokens; for sentences, the mean of tokens."""
    seen, read = [], []
    for first in range(0, data.rows, BATCH):
        pixels = data.images(range(first, min(first + BATCH, data.rows)))
        seen.append(images.vit.trunk.forward_features(images.normalize(pixels)).mean((2, 3)))
    for first in range(0, len(data.captions), BATCH):
        text_BL, valid_BL = data.texts(range(first, min(first + BATCH, len(data.captions))))
        tokens_BLD = texts(input_ids=text_BL, attention_mask=valid_BL.long()).last_hidden_state
        mask = valid_BL[..., None]
        read.append(F.normalize((tokens_BLD * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(seen), torch.cat(read), torch.from_numpy(data.owner)


def _fitted(train: Features, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """The means of both kinds of features, and the map between them; an image's target is its captions' mean."""
    image_ND, caption_CE, owner_C = train
    count_N = torch.bincount(owner_C, minlength=len(image_ND))[:, None]
    text_NE = caption_CE.new_zeros(len(image_ND), caption_CE.shape[1]).index_add_(0, owner_C, caption_CE) / count_N
    image_mean, text_mean = image_ND.mean(0), text_NE.mean(0)
    centred = image_ND - image_mean
    penalised = centred.T @ centred + penalty * torch.eye(centred.shape[1], dtype=centred.dtype)
    return image_mean, text_mean, torch.linalg.solve(penalised, centred.T @ (text_NE - text_mean))


def _recalls(fitted: tuple[Tensor, Tensor, Tensor], part: Features) -> tuple[float, float]:
    """R@10 from images to any of their captions, and from captions to their images."""
    (image_mean, text_mean, weight), (image_ND, caption_CE, owner_C) = fitted, part
    predicted = F.normalize((image_ND - image_mean) @ weight, dim=-1)
    scores_NC = predicted @ F.normalize(caption_CE - text_mean, dim=-1).T
    best_captions = owner_C[scores_NC.topk(min(10, len(owner_C)), dim=1).indices]
    best_images = scores_NC.topk(min(10, len(image_ND)), dim=0).indices
    to_text = (best_captions == torch.arange(len(image_ND))[:, None]).any(1)
    to_image = (best_images == owner_C).any(0)
    return float(to_text.float().mean()), float(to_image.float().mean())
