"""Ranks and recall of retrieval: pure functions of similarities, scores and the right answers.

Letters in addition to mvlm/batch.py's: A queries, N items to be found, R right items of a query (rows
padded with NONE), K candidates re-ranked. Ranks begin at 0; equal scores keep the order of the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor

NONE = -1
"""Pads the right items of a query that has fewer than R."""

RECALLS = (1, 5, 10)

RERANKED_VALUES = 1 << 24
"""Comparisons of candidates with right items made at once, a byte each."""


@dataclass(frozen=True)
class Lists:
    """Lists of integers, end to end: list i is `item[start[i] : start[i + 1]]`."""

    item: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, list_X: np.ndarray, item_X: np.ndarray, count: int) -> Lists:
        """`count` lists from pairs of a list and an item in it; each item once per list, in order."""
        pairs = np.unique(np.stack([list_X, item_X], axis=1), axis=0)
        return cls(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(count + 1)))

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.item[self.start[index] : self.start[index + 1]]

    def lengths(self) -> np.ndarray:
        return np.diff(self.start)


@dataclass(frozen=True)
class RelevantItems:
    """The right items of each query: those of its labels, no two of which share an item.

    They are not kept item by item, since with many equal captions they can be nearly all pairs of query and item.
    """

    labels: Lists  # of each query
    items: Lists  # of each label

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, query: int) -> np.ndarray:
        """The right items of one query."""
        return np.concatenate([self.items[label] for label in self.labels[query]] or [self.items.item[:0]])

    def counts(self) -> np.ndarray:
        """The number of right items of each query."""
        lengths = np.append(self.items.lengths()[self.labels.item], 0)
        return np.add.reduceat(lengths, self.labels.start[:-1]) * (self.labels.lengths() > 0)

    def padded(self, queries: np.ndarray) -> np.ndarray:
        """int64 [len(queries), R], R being the most that one of these queries has; padded with NONE."""
        rows = [self[query] for query in queries]
        right_AR = np.full((len(rows), max(1, max(map(len, rows)))), NONE, dtype=np.int64)
        for right_R, row in zip(right_AR, rows, strict=True):
            right_R[: len(row)] = row
        return right_AR


def answers(owner_M: np.ndarray, images: int, label_M: np.ndarray) -> tuple[RelevantItems, RelevantItems]:
    """The right captions of each image and the right images of each caption.

    Args:
        owner_M: the image of each caption.
        label_M: from 0; captions of one label are right wherever one of them is.
    """
    captions, labels = np.arange(len(owner_M)), int(label_M.max(initial=-1)) + 1
    of_image = RelevantItems(Lists.of(owner_M, label_M, images), Lists.of(label_M, captions, labels))
    of_caption = RelevantItems(Lists.of(captions, label_M, len(owner_M)), Lists.of(label_M, owner_M, labels))
    return of_image, of_caption


def rank_tile(similarity_AN: Tensor, right_AR: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Order the items for a tile of queries.

    Returns:
        rank_A: the rank of the best-placed right item; top_AK: the first `top` items, best first.
    """
    order_AN = similarity_AN.argsort(dim=1, descending=True, stable=True)
    return best_rank(order_AN, right_AR), order_AN[:, :top].clone()


def best_rank(order_AN: Tensor, right_AR: Tensor) -> Tensor:
    """The place in each row of `order_AN`, a permutation of the items, of the right item that comes first.

    It is N if a query has no right item.
    """
    place_AN = torch.empty_like(order_AN)
    place_AN.scatter_(1, order_AN, torch.arange(order_AN.shape[1], device=order_AN.device).expand_as(order_AN))
    place_AR = place_AN.gather(1, right_AR.clamp(min=0))
    return place_AR.masked_fill(right_AR == NONE, order_AN.shape[1]).amin(dim=1)


def rerank(top_AK: np.ndarray, score_AK: np.ndarray) -> np.ndarray:
    """The candidates by descending score; equal scores by index, so that a matcher that cannot tell gains nothing."""
    return np.take_along_axis(top_AK, np.lexsort((top_AK, -score_AK)), axis=1)


def search_scores(odds_AK: np.ndarray, cosine_AK: np.ndarray, temperature: float) -> np.ndarray:
    """The scores by which a search orders ITC's first candidates: ITM's log-odds plus ITC's logit.

    ITM has learned to tell pairs from negatives drawn by ITC's softmax, so its odds are what ITC does not know, and an
    ITM that has hardly learned changes nothing. Retrieval is evaluated by ITM alone, as in the paper.
    """
    return odds_AK + cosine_AK / temperature


def match_probability(odds: np.ndarray) -> np.ndarray:
    """ITM's probability of a match from its log-odds, however large."""
    return np.exp(-np.logaddexp(0, -odds))


def reranked_rank(rank_A: np.ndarray, reranked_AK: np.ndarray, right: RelevantItems) -> np.ndarray:
    """The best right item's rank after re-ranking; unchanged if no right item is a candidate."""
    widest = reranked_AK.shape[1] * max(1, right.counts().max(initial=1))
    rows = max(1, RERANKED_VALUES // int(widest))
    ranks = []
    for start in range(0, len(rank_A), rows):
        queries = np.arange(start, min(start + rows, len(rank_A)))
        found_AK = (reranked_AK[queries, :, None] == right.padded(queries)[:, None, :]).any(axis=2)
        ranks.append(np.where(found_AK.any(axis=1), found_AK.argmax(axis=1), rank_A[queries]))
    return np.concatenate(ranks)


def passed(rank_A: np.ndarray, weight_RA: np.ndarray) -> np.ndarray:
    """How many queries have their right item among the first 1, 2, ... B, where B is the last place of any -> RB.

    Args:
        weight_RA: how often each query counts in each of R resamples.
    """
    places = int(rank_A.max()) + 1
    return np.cumsum([np.bincount(rank_A, weight_A, places) for weight_A in weight_RA], axis=1)


def recall(passed_RB: np.ndarray, k: int) -> np.ndarray:
    """For each of R resamples, the share of the queries whose right item is among the first `k`."""
    return passed_RB[:, :k][:, -1] / passed_RB[:, -1]


def median_rank(passed_RB: np.ndarray) -> np.ndarray:
    """For each of R resamples, the median over the queries of the best right item's rank, from 1."""
    half_R = passed_RB[:, -1] / 2
    middle = [(passed_RB < at_R[:, None]).sum(axis=1) for at_R in (half_R, half_R + 1e-9)]  # the two middle ones
    return np.mean(middle, axis=0) + 1


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
