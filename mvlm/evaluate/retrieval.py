"""Image-text retrieval: ITC orders everything, ITM orders ITC's first k again (paper, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvlm.data.dataset import EvalDataset
from mvlm.evaluate import ranking, shares
from mvlm.model.maskvlm import MaskVLM


@dataclass(frozen=True)
class Direction:
    """The answers to the A queries of one direction; ranks begin at 0."""

    right_AR: np.ndarray  # the right items, padded with ranking.NONE
    itc_A: np.ndarray  # rank of the best-placed right item
    reranked_A: np.ndarray | None  # the same after ITM; None where nothing was re-ranked
    top_AK: np.ndarray  # the first items in the final order


@dataclass(frozen=True)
class Retrieval:
    image_to_text: Direction
    text_to_image: Direction
    rerank: int  # candidates a query that ITM ordered again


def evaluate_retrieval(
    model: MaskVLM, dataset: EvalDataset, batch: int, rerank: int, device: torch.device
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 in both directions, as shares, with chance and the protocol; see `summary`."""
    return summary(retrieve(model, dataset, batch, rerank, device), dataset)


def retrieve(model: MaskVLM, dataset: EvalDataset, batch: int, rerank: int, device: torch.device) -> Retrieval:
    """Order all captions for each image and all images for each caption.

    Args:
        batch: images, texts or ITM pairs in a forward pass.
        rerank: candidates a query that ITM orders again; 0, or a model trained without ITM, leaves ITC's order.
    """
    objectives = model.config.objectives
    right_text = ranking.right_items(dataset.owner, len(dataset))
    right_image = dataset.owner[:, None]
    with shares.inference(model):
        image_NE, text_ME = (
            _image_features(model, dataset, batch, device),
            _text_features(model, dataset, batch, device),
        )
        shown = max(rerank, max(ranking.RECALLS))
        image_rank, image_top = _rank(image_NE, text_ME, right_text, shown)
        text_rank, text_top = _rank(text_ME, image_NE, right_image, shown)
        if not (rerank and objectives.itm):
            return Retrieval(
                Direction(right_text, image_rank, None, image_top), Direction(right_image, text_rank, None, text_top), 0
            )
        image_score, text_score = _match(model, dataset, batch, device, image_top[:, :rerank], text_top[:, :rerank])
    return Retrieval(
        _reranked(right_text, image_rank, image_top, image_score),
        _reranked(right_image, text_rank, text_top, text_score),
        rerank,
    )


def summary(found: Retrieval, dataset: EvalDataset) -> dict[str, Any]:
    """`image_to_text` and `text_to_image`, each {`itc`, `reranked` (None if not done)}: {r1, r5, r10} in shares;
    `chance`, the greater of the two directions; `images`, `captions`; `protocol`, one sentence.
    """
    images, captions = len(dataset), len(dataset.captions)
    by_chance = (
        ranking.chance((found.image_to_text.right_AR != ranking.NONE).sum(axis=1), captions),
        ranking.chance(np.ones(1, dtype=np.int64), images),
    )
    return {
        "image_to_text": _recalls(found.image_to_text),
        "text_to_image": _recalls(found.text_to_image),
        "chance": {key: max(shares[key] for shares in by_chance) for key in by_chance[0]},
        "images": images,
        "captions": captions,
        "protocol": _protocol(images, captions, found.rerank),
    }


def _recalls(direction: Direction) -> dict[str, Any]:
    reranked = None if direction.reranked_A is None else ranking.recalls(direction.reranked_A)
    return {"itc": ranking.recalls(direction.itc_A), "reranked": reranked}


def _protocol(images: int, captions: int, rerank: int) -> str:
    again = (
        f"ITM orders the first {rerank} of each query again, the others stay behind them in ITC's order"
        if rerank
        else "not re-ranked by ITM"
    )
    return (
        f"{images} images and {captions} captions, all of them candidates of every query; "
        f"ITC orders them by cosine similarity, {again}; an image counts as found at its best-placed caption, "
        "a caption at its one image; equal scores keep the order of the data."
    )


def _image_features(model: MaskVLM, dataset: EvalDataset, batch: int, device: torch.device) -> Tensor:
    parts = []
    for rows in shares.batches(len(dataset), batch):
        image_BSD = model.encode_image(dataset.images(rows.tolist()).to(device))
        parts.append(model.project_image(image_BSD))
    return shares.gather(parts, len(dataset))


def _text_features(model: MaskVLM, dataset: EvalDataset, batch: int, device: torch.device) -> Tensor:
    parts = []
    for indices in shares.batches(len(dataset.captions), batch):
        text_BL, valid_BL = (tensor.to(device) for tensor in dataset.texts(indices.tolist()))
        parts.append(model.project_text(model.encode_text(text_BL, valid_BL)))
    return shares.gather(parts, len(dataset.captions))


def _rank(query_AE: Tensor, item_NE: Tensor, right_AR: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """`ranking.rank_by_similarity` with the queries split over ranks."""
    count = len(query_AE)
    (mine,) = shares.batches(count, count)
    right = torch.from_numpy(right_AR[mine]).to(query_AE.device)
    rank_A, top_AK = ranking.rank_by_similarity(query_AE[torch.from_numpy(mine)], item_NE, right, top)
    return shares.gather([rank_A], count).cpu().numpy(), shares.gather([top_AK], count).cpu().numpy()


def _match(
    model: MaskVLM,
    dataset: EvalDataset,
    batch: int,
    device: torch.device,
    image_top: np.ndarray,
    text_top: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """ITM's log-odds of every candidate: [images, K] of captions and [captions, K] of images.

    A pair that is a candidate in both directions is matched once. Sorted by image, a batch of pairs holds
    few images, so encoding them anew costs little and nothing but the scores is kept.
    """
    captions = len(dataset.captions)
    wanted = (
        np.arange(len(image_top))[:, None] * captions + image_top,
        text_top * captions + np.arange(len(text_top))[:, None],
    )
    pairs, where = np.unique(np.concatenate([w.ravel() for w in wanted]), return_inverse=True)
    parts = []
    for indices in shares.batches(len(pairs), batch):
        rows, image_of_pair = np.unique(pairs[indices] // captions, return_inverse=True)
        texts, text_of_pair = np.unique(pairs[indices] % captions, return_inverse=True)
        image_BSD = model.encode_image(dataset.images(rows.tolist()).to(device))
        text_BL, valid_BL = (tensor.to(device) for tensor in dataset.texts(texts.tolist()))
        text_BLD = model.encode_text(text_BL, valid_BL)
        image_idx_B, text_idx_B = torch.from_numpy(image_of_pair), torch.from_numpy(text_of_pair)
        logits_B2 = model.match(image_BSD[image_idx_B], text_BLD[text_idx_B], valid_BL[text_idx_B])
        parts.append((logits_B2[:, 1] - logits_B2[:, 0]).float())
    scores = shares.gather(parts, len(pairs)).cpu().numpy()[where]
    image_score, text_score = np.split(scores, [image_top.size])
    return image_score.reshape(image_top.shape), text_score.reshape(text_top.shape)


def _reranked(right_AR: np.ndarray, rank_A: np.ndarray, top_AK: np.ndarray, score_AK: np.ndarray) -> Direction:
    first_AK = ranking.rerank(top_AK[:, : score_AK.shape[1]], score_AK)
    top_AK = np.concatenate([first_AK, top_AK[:, score_AK.shape[1] :]], axis=1)
    return Direction(right_AR, rank_A, ranking.reranked_rank(rank_A, first_AK, right_AR), top_AK)
