"""How well words and pixels are reconstructed with the right other modality, with none and with another pair's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE
from mvlm.config.schema import Objectives
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.pictures import ImagesAndTexts
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.evaluate.masked_words import ChosenWords, MaskedText, MaskedWords, RandomWords
from mvlm.evaluate.untrained import untrained
from mvlm.model import masking
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist

CONDITIONS = ("right", "none", "wrong")

MEDIAN_VALUES = 1 << 26
"""Pixel values held to take the median over the images: all of a small set, an even sample of a large one."""


def evaluate_reconstruction(
    model: MaskVLM, dataset: EvalDataset, batch: int, device: torch.device, words: Sequence[str] = ()
) -> dict[str, Any]:
    """Scores of reconstructing what is masked, under the three conditions `right`, `none` and `wrong`.

    Args:
        batch: sentences or images in a forward pass.
        words: mask these words, one occurrence at a time; none = tokens as in training.

    Returns:
        `word_accuracy` in shares, `word_loss` in nats and `pixel_l1` in the space trained in, each by
        condition; `pixel_l1` also by `constant`, the best constant image; `images`, `captions`,
        `hidden_words`, `words`, and `protocol`, a few sentences.

    Raises:
        UserError: there are no two distinct pairs to swap, or `words` occur nowhere.
    """
    masked_words: MaskedWords = RandomWords(dataset, model.objectives, model.seed)
    if words:
        masked_words = ChosenWords(dataset, words)
    other = derangement([dataset.captions[caption] for caption in first_captions(dataset)])
    with shares.inference(model):
        word_scores = _word_scores(model, dataset, masked_words, other, batch, device)
        pixel_scores = _pixel_scores(model, dataset, other, batch, device)
    scores = aggregate_words(word_scores, masked_words.whole) | {"pixel_l1": aggregate_pixels(pixel_scores)}
    counts = {"images": len(dataset), "captions": len(dataset.captions), "words": list(words)}
    told = _protocol(model.objectives, scores | counts), untrained(model, "text"), untrained(model, "image")
    return scores | counts | {"protocol": " ".join(filter(None, told))}


def derangement(keys: Sequence[str]) -> np.ndarray:
    """A permutation that maps every item to one with another key: a shift by one if all keys differ.

    Raises:
        UserError: more than half of the items share one key.
    """
    _, label = np.unique(np.array(keys, dtype=object), return_inverse=True)
    first_seen = np.full(label.max(initial=-1) + 1, len(keys))
    np.minimum.at(first_seen, label, np.arange(len(keys)))
    order = np.argsort(first_seen[label], kind="stable")
    shift = int(np.bincount(label, minlength=1).max())
    if 2 * shift > len(keys):
        raise UserError(
            f"{shift} of the {len(keys)} evaluation pairs have the same caption, so that no other pair can stand in "
            "for each of them: evaluate on more, or on more varied, pairs."
        )
    other = np.empty(len(keys), dtype=np.int64)
    other[order] = np.roll(order, -shift)
    return other


def first_captions(dataset: EvalDataset) -> np.ndarray:
    """For each image, the index of the first of its captions."""
    rows, first = np.unique(dataset.owner, return_index=True)
    return first[np.argsort(rows)]


def mean_image(dataset: EvalDataset, batch: int) -> Tensor:
    """The mean of all images, uint8 [1, C, H, W]: an image that says nothing about any pair."""
    mine = np.array_split(np.arange(len(dataset)), dist.world())[dist.rank()]
    total = torch.zeros(dataset.images([0]).shape[1:], dtype=torch.float64)
    for start in range(0, len(mine), batch):
        total += dataset.images(mine[start : start + batch].tolist()).double().sum(dim=0)
    return (dist.all_reduce(total) / len(dataset)).round().to(torch.uint8)[None]


def patch_masks(model: MaskVLM, rows: np.ndarray) -> Tensor:
    """The masked patches of these images, bool BN, which depend only on the run's seed and the row."""
    streams = (masking.generator(model.seed, masking.Purpose.PATCHES, 0, 0, int(row)) for row in rows)
    masks = [masking.patch_mask(stream, model.grid, model.objectives) for stream in streams]
    return torch.from_numpy(np.stack(masks))


def pixel_target(model: MaskVLM, image_BCHW: Tensor) -> Tensor:
    """BNQ: the normalised image's patches, each standardised if the run was trained so (MAE, section 4.1)."""
    patches_BNQ = model.patchify(model.normalize(image_BCHW))
    if not model.objectives.normalized_targets:
        return patches_BNQ
    mean, std = patch_statistics(patches_BNQ)
    return (patches_BNQ - mean) / std


def patch_statistics(patches_BNQ: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, as the objective standardises it."""
    return patches_BNQ.mean(-1, keepdim=True), (patches_BNQ.var(-1, keepdim=True) + 1e-6).sqrt()


def aggregate_words(item_sums: np.ndarray, whole: bool) -> dict[str, Any]:
    """Mean accuracy and loss from the sums of each sentence: [items, 2 x conditions + 1], see `_word_sums`.

    Counted by masked token or, if a sentence's masked tokens are one word, by word.
    """
    size = item_sums[:, -1]
    right, loss = np.split(item_sums[:, :-1], 2, axis=1)
    if whole:
        right, loss, size = right == size[:, None], loss / size[:, None], np.ones_like(size)
    count = max(size.sum(), 1)
    accuracy, mean_loss = right.sum(axis=0) / count, loss.sum(axis=0) / count
    return {
        "word_accuracy": dict(zip(CONDITIONS, map(float, accuracy), strict=True)),
        "word_loss": dict(zip(CONDITIONS, map(float, mean_loss), strict=True)),
        "hidden_words": int(size.sum()),
    }


def aggregate_pixels(item_sums: np.ndarray) -> dict[str, float]:
    """Mean L1 from the sums of each image: [images, conditions + constant + number of masked values]."""
    means = item_sums[:, :-1].sum(axis=0) / item_sums[:, -1].sum()
    return dict(zip((*CONDITIONS, "constant"), map(float, means), strict=True))


def _word_scores(
    model: MaskVLM,
    dataset: EvalDataset,
    masked_words: MaskedWords,
    other: np.ndarray,
    batch: int,
    device: torch.device,
) -> np.ndarray:
    blank_BCHW, parts = mean_image(dataset, batch).to(device), []
    for indices in shares.batches(len(masked_words), batch):
        text = masked_words.items(indices)
        rows = dataset.owner[text.caption_B]
        images = (dataset.images(rows.tolist()).to(device), blank_BCHW, dataset.images(other[rows].tolist()).to(device))
        parts.append(_word_sums(model, text, images, device))
    return shares.gather(parts, len(masked_words)).numpy()


def _word_sums(model: MaskVLM, text: MaskedText, images: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """For each sentence: masked tokens right by condition, their summed loss by condition, their number."""
    valid_BL, target_BL = text.valid_BL.to(device), text.target_BL.to(device)
    masked_BL = target_BL != IGNORE
    text_BLD = model.encode_text(text.masked_text_BL.to(device), valid_BL)
    right, loss = [], []
    for image_BCHW in images:
        image_BSD = model.encode_image(image_BCHW).expand(len(target_BL), -1, -1)
        logits_MV = model.reconstruct_text(model.fuse_text(text_BLD, image_BSD, valid_BL)[masked_BL]).float()
        target_M = target_BL[masked_BL]
        right.append(_sum_by_row(logits_MV.argmax(-1) == target_M, masked_BL))
        loss.append(_sum_by_row(F.cross_entropy(logits_MV, target_M, reduction="none"), masked_BL))
    return torch.stack([*right, *loss, masked_BL.sum(1).double()], dim=1).cpu()


def _sum_by_row(value_M: Tensor, masked_BL: Tensor) -> Tensor:
    spread_BL = torch.zeros(masked_BL.shape, dtype=torch.float64, device=masked_BL.device)
    spread_BL[masked_BL] = value_M.double()
    return spread_BL.sum(1)


def _pixel_scores(
    model: MaskVLM, dataset: EvalDataset, other: np.ndarray, batch: int, device: torch.device
) -> np.ndarray:
    caption_of = first_captions(dataset)
    constant_NQ = _median(model, dataset, batch).to(device)
    parts = []
    for rows in shares.batches(len(dataset), batch):
        texts = (
            dataset.texts(caption_of[rows].tolist()),
            empty_sentence(dataset, len(rows)),
            dataset.texts(caption_of[other[rows]].tolist()),
        )
        image_BCHW, mask_BN = dataset.images(rows.tolist()).to(device), patch_masks(model, rows).to(device)
        target_BNQ = pixel_target(model, image_BCHW)
        masked_BSD = model.encode_image(image_BCHW, mask_BN)
        predictions = [
            reconstruct_image(model, masked_BSD, mask_BN, text_BL.to(device), valid_BL.to(device))
            for text_BL, valid_BL in texts
        ]
        sums = [((p_BNQ - target_BNQ).abs().sum(-1) * mask_BN).sum(1) for p_BNQ in (*predictions, constant_NQ)]
        values = mask_BN.sum(1) * target_BNQ.shape[-1]
        parts.append(torch.stack([*sums, values], dim=1).double().cpu())
    return shares.gather(parts, len(dataset)).numpy()


def reconstruct_image(model: MaskVLM, masked_BSD: Tensor, mask_BN: Tensor, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """Encoded images with masked patches, and whole sentences -> BNQ in fp32."""
    text_BLD = model.encode_text(text_BL, valid_BL)
    fused_BSD = model.fuse_image(masked_BSD, text_BLD, valid_BL)
    return model.reconstruct_image(fused_BSD, text_BLD, valid_BL, mask_BN).float()


def empty_sentence(dataset: ImagesAndTexts, count: int) -> tuple[Tensor, Tensor]:
    """`count` times the sentence of special tokens only: BL and its validity."""
    return dataset.tokens.batch([""] * count)


def _median(model: MaskVLM, dataset: EvalDataset, batch: int) -> Tensor:
    """NQ: the constant with the least L1 on these images (or an even sample of at most MEDIAN_VALUES values)."""
    values = dataset.images([0])[0].numel()
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), max(1, MEDIAN_VALUES // values))).astype(np.int64)
    targets = [
        pixel_target(model, dataset.images(rows[start : start + batch].tolist()))
        for start in range(0, len(rows), batch)
    ]
    return torch.cat(targets).median(dim=0).values


def _protocol(objectives: Objectives, result: dict[str, Any]) -> str:
    words, masked = result["words"], result["hidden_words"]
    which = (
        f"the {masked} occurrences of {', '.join(words)} are masked one at a time, right when all their tokens are"
        if words
        else f"{objectives.text_mask_ratio:.0%} of the tokens are masked as in training, {masked} in all"
    )
    space = "its normalised patches" if objectives.normalized_targets else "the normalised image"
    return (
        f"Words: in {result['captions']} captions {which}. Pixels: {objectives.image_mask_ratio:.0%} of each of "
        f"{result['images']} images is masked, L1 over the masked values of {space}, read with the image's first "
        "caption. None is the mean image or the empty sentence, wrong is another pair's image or caption, the same "
        "masks in all conditions; constant is the per-pixel median of the images."
    )
