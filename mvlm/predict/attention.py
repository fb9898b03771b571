"""Where each word attends: the text cross encoder's attention to the patches of the image."""

from __future__ import annotations

import re
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mvlm.data.samples.pictures import Pictures, read_picture
from mvlm.evaluate import shares
from mvlm.model.encoders import Encoders
from mvlm.predict.draw import heat_tile, strip, tile


def token_attention(model: Encoders, image_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
    """The share of attention that each token pays to each patch -> BLN, the mean over blocks and heads.

    The rest, up to 1, goes to the image's CLS.
    """
    seen: list[Tensor] = []

    def note(attention: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(attention.weights(inputs[0], inputs[1]).mean(dim=1))

    blocks: Any = model.cross_text.blocks
    hooks = [block.cross_attention.register_forward_pre_hook(note) for block in blocks]
    try:
        model.fuse_text(text_BLD, image_BSD, valid_BL)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen).mean(dim=0)[:, :, 1:]


def word_attention(
    model: Encoders, pictures: Pictures, row: int, sentence: str, device: torch.device
) -> list[tuple[str, Tensor]]:
    """Each word that the model reads, with the mean of its tokens' attention to the patches: rows x columns."""
    with shares.inference(model):
        image_1SD = model.encode_image(pictures.images([row]).to(device))
        text_1L, valid_1L = (tensor.to(device) for tensor in pictures.tokens.batch([sentence]))
        share_LN = token_attention(model, image_1SD, model.encode_text(text_1L, valid_1L), valid_1L)[0].float().cpu()
    spans, words = pictures.tokens.spans(sentence), []
    for word in re.finditer(r"\S+", sentence):
        tokens = [i for i, (first, last) in enumerate(spans) if first < word.end() and last > word.start()]
        if tokens:
            words.append((word.group(), share_LN[tokens].mean(dim=0).unflatten(0, model.grid)))
    return words


def attention_strips(model: Encoders, pictures: Pictures, row: int, sentence: str, device: torch.device) -> Image.Image:
    """The picture, and a copy for each word, redder where the word attends more."""
    picture = read_picture(pictures.paths[row])
    words = word_attention(model, pictures, row, sentence, device)
    return strip([tile(picture, ""), *(heat_tile(picture, word, share) for word, share in words)])
