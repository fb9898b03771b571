"""Ranks and recall of retrieval: pure functions of similarities, scores and the right answers.

Letters beside the legend of mvlm/batch.py: A queries, N items to be found, R right items of a query (rows
padded with NONE), K candidates re-ranked. Ranks begin at 0; equal scores keep the order of the index.
"""

from __future__ import annotations

from math import comb

import numpy as np
import torch
from torch import Tensor

NONE = -1
"""Pads the right items of a query that has fewer than R."""

RECALLS = (1, 5, 10)

TILE_VALUES = 1 << 22
"""Similarities held at once; bounds the memory of any corpus to some 100 MB."""


def rank_by_similarity(query_AE: Tensor, item_NE: Tensor, right_AR: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Order the items by their inner product with each query, in tiles of queries.

    Returns:
        rank_A: the rank of the best-placed right item; top_AK: the first `top` items, best first.
    """
    rows = max(1, TILE_VALUES // len(item_NE))
    ranks, tops = [], []
    for start in range(0, len(query_AE), rows):
        similarity_AN = query_AE[start : start + rows] @ item_NE.T
        order_AN = similarity_AN.argsort(dim=1, descending=True, stable=True)
        ranks.append(best_rank(order_AN, right_AR[start : start + rows]))
        tops.append(order_AN[:, :top])
    return torch.cat(ranks), torch.cat(tops)


def best_rank(order_AN: Tensor, right_AR: Tensor) -> Tensor:
    """The place in each row of `order_AN`, a permutation of the items, of the right item that comes first."""
    place_AN = torch.empty_like(order_AN)
    place_AN.scatter_(1, order_AN, torch.arange(order_AN.shape[1], device=order_AN.device).expand_as(order_AN))
    place_AR = place_AN.gather(1, right_AR.clamp(min=0))
    return place_AR.masked_fill(right_AR == NONE, order_AN.shape[1]).amin(dim=1)


def rerank(top_AK: np.ndarray, score_AK: np.ndarray) -> np.ndarray:
    """The candidates by descending score; equal scores by index, so that a matcher that cannot tell gains nothing."""
    return np.take_along_axis(top_AK, np.lexsort((top_AK, -score_AK)), axis=1)


def reranked_rank(rank_A: np.ndarray, reranked_AK: np.ndarray, right_AR: np.ndarray) -> np.ndarray:
    """The best right item's rank after re-ranking: the one before where no right item is a candidate."""
    found_AK = (reranked_AK[:, :, None] == right_AR[:, None, :]).any(axis=2)
    return np.where(found_AK.any(axis=1), found_AK.argmax(axis=1), rank_A)


def right_items(owner_M: np.ndarray, images: int) -> np.ndarray:
    """The captions of each image, padded with NONE: int64 [images, most captions of one image]."""
    counts = np.bincount(owner_M, minlength=images)
    right_AR = np.full((images, max(1, counts.max(initial=0))), NONE, dtype=np.int64)
    order = np.argsort(owner_M, kind="stable")
    column = np.arange(len(owner_M)) - np.repeat(np.cumsum(counts) - counts, counts)
    right_AR[owner_M[order], column] = order
    return right_AR


def recalls(rank_A: np.ndarray) -> dict[str, float]:
    """Share of the queries whose right item is among the first 1, 5 and 10."""
    return {f"r{k}": float((rank_A < k).mean()) for k in RECALLS}


def chance(right_per_query: np.ndarray, items: int) -> dict[str, float]:
    """Recall of a random order, exactly: a draw of k from `items` without a right one is hypergeometric."""
    counts, queries = np.unique(right_per_query, return_counts=True)
    shares = {}
    for k in RECALLS:
        drawn = min(k, items)
        draws = comb(items, drawn)
        hits = [(draws - comb(items - int(right), drawn)) / draws for right in counts]
        shares[f"r{k}"] = float(np.average(hits, weights=queries))
    return shares
