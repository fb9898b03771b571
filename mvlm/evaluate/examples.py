"""Pictures and sentences reconstructed with and without the other modality, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvlm.batch import IGNORE
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.spelling import spelled
from mvlm.evaluate import shares
from mvlm.evaluate.masked_words import RandomWords
from mvlm.evaluate.reconstruction import (
    first_captions,
    mean_image,
    patch_masks,
    patch_statistics,
    pixel_target,
    reconstruct_image,
)
from mvlm.model.maskvlm import MaskVLM

GUESSES = 3
GREY = 127


@dataclass(frozen=True)
class ImageExample:
    """A reconstructed image; the pictures are uint8 [H, W, 3]."""

    caption: str
    original: np.ndarray
    masked: np.ndarray  # masked patches grey
    with_text: np.ndarray  # the visible patches are the original's
    without_text: np.ndarray
    l1_with: float  # over the masked values, in the space trained in
    l1_without: float


@dataclass(frozen=True)
class Guess:
    word: str  # as `spelled`
    probability: float
    right: bool


@dataclass(frozen=True)
class Token:
    """A token of a sentence; the guesses, best first, are empty if it was shown."""

    text: str  # as the caption spells it, with the space before it
    with_image: tuple[Guess, ...] = ()
    without_image: tuple[Guess, ...] = ()


@dataclass(frozen=True)
class TextExample:
    image: np.ndarray  # uint8 [H, W, 3]
    tokens: tuple[Token, ...]

    def right(self, condition: str) -> tuple[int, int]:
        """Masked tokens guessed right, and masked tokens; `condition` is "with_image" or "without_image"."""
        guesses = [getattr(token, condition) for token in self.tokens if token.with_image]
        return sum(best[0].right for best in guesses), len(guesses)


def examples(
    model: MaskVLM,
    dataset: EvalDataset,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int],
    device: torch.device,
) -> tuple[list[ImageExample], list[TextExample]]:
    """Both for each of these rows and its first caption, masked as in training, but tokens always by the mask token.

    Without text means the empty sentence, without image the mean image of the set.
    """
    indices = np.asarray(rows, dtype=np.int64)
    with shares.inference(model):
        return (
            _image_examples(model, dataset, indices, device),
            _text_examples(model, dataset, tokenizer, indices, device),
        )


def reconstructed(
    model: MaskVLM, dataset: EvalDataset, rows: Sequence[int], device: torch.device
) -> list[ImageExample]:
    """The images of these rows, as `examples` gives them."""
    with shares.inference(model):
        return _image_examples(model, dataset, np.asarray(rows, dtype=np.int64), device)


def _image_examples(model: MaskVLM, dataset: EvalDataset, rows: np.ndarray, device: torch.device) -> list[ImageExample]:
    captions = [dataset.captions[caption] for caption in first_captions(dataset)[rows]]
    image_BCHW, mask_BN = dataset.images(rows.tolist()).to(device), patch_masks(model, rows).to(device)
    return image_examples(model, captions, dataset.tokens, image_BCHW, mask_BN)


def image_examples(
    model: MaskVLM, captions: Sequence[str], tokens: BatchTokenizer, image_BCHW: Tensor, mask_BN: Tensor
) -> list[ImageExample]:
    """Reconstruct the masked patches of images, once with their captions and once with empty ones.

    Args:
        image_BCHW: uint8, on the model's device.
        mask_BN: bool, True = masked: at least one patch of each image, and not all.
    """
    masked_BSD, target_BNQ = model.encode_image(image_BCHW, mask_BN), pixel_target(model, image_BCHW)
    pictures, errors = [], []
    for texts in (captions, [""] * len(captions)):
        text_BL, valid_BL = (tensor.to(image_BCHW.device) for tensor in tokens.batch(texts))
        pixels_BNQ = reconstruct_image(model, masked_BSD, mask_BN, text_BL, valid_BL)
        pictures.append(pictures_of(paste(model, image_BCHW, mask_BN, pixels_BNQ)))
        error_BN = (pixels_BNQ - target_BNQ).abs().mean(-1)
        errors.append(((error_BN * mask_BN).sum(1) / mask_BN.sum(1)).tolist())
    grey_BNQ = model.patchify(image_BCHW.float()).masked_fill(mask_BN[..., None], GREY)
    masked, originals = pictures_of(model.unpatchify(grey_BNQ)), pictures_of(image_BCHW)
    return [ImageExample(*parts) for parts in zip(captions, originals, masked, *pictures, *errors, strict=True)]


def paste(model: MaskVLM, image_BCHW: Tensor, mask_BN: Tensor, pixels_BNQ: Tensor) -> Tensor:
    """The image in 0..255 with the masked patches as predicted.

    A patch predicted in standardised form gets the true patch's mean and deviation back, as MAE shows it.
    """
    normalized_BNQ = model.patchify(model.normalize(image_BCHW))
    if model.objectives.normalized_targets:
        mean, std = patch_statistics(normalized_BNQ)
        pixels_BNQ = pixels_BNQ * std + mean
    pasted_BCHW = model.unpatchify(torch.where(mask_BN[..., None], pixels_BNQ, normalized_BNQ))
    black, white = (model.normalize(torch.full_like(image_BCHW[:1], value)) for value in (0, 255))
    return (pasted_BCHW - black) / (white - black) * 255


def pictures_of(image_BCHW: Tensor) -> list[np.ndarray]:
    """Images in 0..255, of any type, as uint8 [H, W, 3]."""
    return list(image_BCHW.float().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _text_examples(
    model: MaskVLM,
    dataset: EvalDataset,
    tokenizer: PreTrainedTokenizerBase,
    rows: np.ndarray,
    device: torch.device,
) -> list[TextExample]:
    captions = first_captions(dataset)[rows]
    text = RandomWords(dataset, model.objectives, model.seed, plain=True).items(captions)
    valid_BL = text.valid_BL.to(device)
    text_BLD = model.encode_text(text.masked_text_BL.to(device), valid_BL)
    image_BCHW = dataset.images(rows.tolist())
    guesses = []
    for shown_BCHW in (image_BCHW, mean_image(dataset, len(rows))):
        image_BSD = model.encode_image(shown_BCHW.to(device)).expand(len(rows), -1, -1)
        logits_BLV = model.reconstruct_text(model.fuse_text(text_BLD, image_BSD, valid_BL)).float()
        guesses.append(logits_BLV.softmax(-1).topk(GUESSES, dim=-1))
    with_image, without_image = ([(p.cpu(), ids.cpu()) for p, ids in zip(*best, strict=True)] for best in guesses)

    def sentence(b: int) -> tuple[Token, ...]:
        caption, tokens, end = dataset.captions[captions[b]], [], 0
        for place, (first, last) in enumerate(dataset.tokens.spans(caption)):
            if last > first:
                target, own, end = int(text.target_BL[b, place]), caption[end:last], max(end, last)
                best = [] if target == IGNORE else [with_image[b], without_image[b]]
                tokens.append(Token(own, *(_guesses(tokenizer, guess, place, target) for guess in best)))
        return tuple(tokens)

    return [TextExample(picture, sentence(b)) for b, picture in enumerate(pictures_of(image_BCHW))]


def _guesses(
    tokenizer: PreTrainedTokenizerBase, best: tuple[Tensor, Tensor], place: int, target: int
) -> tuple[Guess, ...]:
    probability_LK, id_LK = best
    return tuple(
        Guess(spelled(tokenizer, [token]), probability, token == target)
        for probability, token in zip(probability_LK[place].tolist(), id_LK[place].tolist(), strict=True)
    )
