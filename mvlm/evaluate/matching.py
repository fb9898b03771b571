"""ITM of many chosen pairs: texts are encoded once, images once for each block of texts that is held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mvlm.data.samples.captions import FINE
from mvlm.data.samples.padding import round_up
from mvlm.data.samples.pictures import ImagesAndTexts
from mvlm.evaluate import shares
from mvlm.evaluate.memory import Sizes
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import replicas


def match_pairs(
    model: MaskVLM, dataset: ImagesAndTexts, pair_P: np.ndarray, sizes: Sizes, device: torch.device
) -> np.ndarray:
    """ITM's log-odds of each pair, float32 [P].

    Args:
        pair_P: image x captions + caption, ascending, each once.

    A pass holds pairs of one block of `sizes.batch` images, the same pairs on any number of ranks. The blocks with most
    pairs come first, one per rank at a time, so that ranks hardly wait for each other.
    """
    captions = len(dataset.captions)
    image_P, text_P = np.divmod(pair_P, captions)
    odds_P = torch.zeros(len(pair_P), dtype=torch.float32, device=device)
    for first in range(0, captions, sizes.texts):
        held = np.arange(first, min(first + sizes.texts, captions))
        of_block = np.flatnonzero((text_P >= held[0]) & (text_P <= held[-1]))
        if not len(of_block):
            continue
        length_M, text_MLD = _text_tokens(model, dataset, held, sizes.batch, device)
        for rows, passes in _blocks(image_P, of_block, len(dataset), sizes.batch):
            image_BSD = model.encode_image(dataset.images(rows.tolist()).to(device))
            for mine, pairs in passes:
                text_B, image_B = text_P[pairs] - first, image_P[pairs] - rows[0]
                length_B = length_M[text_B]
                longest = min(round_up(int(length_B.max()), FINE.text), text_MLD.shape[1])
                words_BLD = text_MLD[_index(text_B, device), :longest]
                valid_BL = torch.arange(longest) < torch.from_numpy(length_B)[:, None]
                logits_B2 = model.match(image_BSD[_index(image_B, device)], words_BLD, valid_BL.to(device))
                if mine:
                    odds_P[_index(pairs, device)] = (logits_B2[:, 1] - logits_B2[:, 0]).float()
    return replicas.all_reduce(odds_P).cpu().numpy()  # every pair belongs to one rank and is 0 on the others


def _text_tokens(
    model: MaskVLM, dataset: ImagesAndTexts, captions: np.ndarray, batch: int, device: torch.device
) -> tuple[np.ndarray, Tensor]:
    """How many tokens each of these captions has, and their features MLD on every rank, undefined beyond the tokens."""
    count, length = len(captions), dataset.tokens.length
    dtype = next(model.parameters()).dtype
    text_MLD = torch.empty(count, length, model.text.width, dtype=dtype, device=device)
    length_M = np.array([len(dataset.tokens.encode(dataset.captions[caption])) for caption in captions])
    for number, indices in enumerate(shares.batches(count, batch)):
        text_BL, valid_BL = (tensor.to(device) for tensor in dataset.texts(captions[indices].tolist()))
        words_BLD = text_MLD.new_zeros(len(indices), length, model.text.width)
        words_BLD[:, : text_BL.shape[1]] = model.encode_text(text_BL, valid_BL)
        everyones = replicas.all_gather(words_BLD).split(len(indices))
        for place, words in zip(shares.places(number, count, batch), everyones, strict=True):
            text_MLD[place] = words[: place.stop - place.start]
    return length_M, text_MLD


def _blocks(
    image_P: np.ndarray, pairs: np.ndarray, images: int, batch: int
) -> Iterator[tuple[np.ndarray, list[tuple[bool, np.ndarray]]]]:
    """This rank's blocks of images, with their passes: whether its scores are wanted, and its pairs.

    All ranks have equally many passes, since ZeRO-3 gathers weights in each; those beyond a rank's own repeat.
    """
    block_P = image_P[pairs] // batch
    numbers, starts, counts = np.unique(block_P, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    for first in range(0, len(order), replicas.world()):
        round_ = order[first : first + replicas.world()]
        mine = replicas.rank() < len(round_)
        block = round_[replicas.rank() if mine else 0]
        of_block = pairs[starts[block] : starts[block] + counts[block]]
        own = -(-len(of_block) // batch)
        passes = []
        for number in range(-(-int(counts[round_].max()) // batch)):
            places = np.minimum(min(number, own - 1) * batch + np.arange(batch), len(of_block) - 1)
            passes.append((mine and number < own, of_block[places]))
        yield np.minimum(numbers[block] * batch + np.arange(min(batch, images)), images - 1), passes


def _index(places: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(places).to(device)
