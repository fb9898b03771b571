"""Spherical k-means of embeddings, by a seed, and near-duplicates within a cluster.

Legend in addition to mvlm/batch.py's: R rows, K clusters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUNDS = 20
"""The most iterations of Lloyd's algorithm."""

AT_A_TIME = 1 << 24
"""Similarities held at once."""

NO_EARLIER = -1.0
"""The lowest possible similarity, given to the first row of a cluster, which has none before it."""


def k_means(embedding_RE: Tensor, clusters: int, seed: int) -> Tensor:
    """Centroids of unit length, K x E, by Lloyd's algorithm on the cosine, begun at random rows.

    A cluster left without rows restarts at the row that is farthest from its nearest centroid. The centroids depend
    only on the rows in their order and the seed.

    Args:
        embedding_RE: fp32 of unit length; at least as many as clusters.
    """
    start = np.random.default_rng(seed).permutation(len(embedding_RE))[:clusters]
    centroid_KE = embedding_RE[torch.from_numpy(start).to(embedding_RE.device)]
    before_R = None
    for _ in range(ROUNDS):
        nearest_R, similarity_R = assign(embedding_RE, centroid_KE)
        if before_R is not None and torch.equal(nearest_R, before_R):
            break
        before_R = nearest_R
        # On the host: a GPU adds in no fixed order.
        sum_KE = torch.zeros(centroid_KE.shape).index_add_(0, nearest_R.cpu(), embedding_RE.cpu())
        empty = (torch.bincount(nearest_R.cpu(), minlength=clusters) == 0).nonzero()[:, 0]
        farthest = torch.sort(similarity_R.cpu(), stable=True).indices[: len(empty)]
        sum_KE[empty] = embedding_RE.cpu()[farthest]
        centroid_KE = torch.nn.functional.normalize(sum_KE, dim=1).to(embedding_RE.device)
    return centroid_KE


def assign(embedding_RE: Tensor, centroid_KE: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row, int64, the first of equally near ones, and the cosine to it."""
    found = [
        (part_RE @ centroid_KE.T).max(dim=1) for part_RE in embedding_RE.split(max(1, AT_A_TIME // len(centroid_KE)))
    ]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])


def duplicate_similarity(embedding_RE: Tensor, to_centroid_R: Tensor) -> Tensor:
    """For each row of a cluster, the greatest cosine to a row that comes before it, or `NO_EARLIER`.

    As in SemDeDup (Abbas et al. 2023, section 3), the rows least like the centroid come first, and so are kept: for any
    bound, the rows below it are those that SemDeDup's removal of near-duplicates leaves.
    """
    order_R = torch.sort(to_centroid_R, stable=True).indices
    ordered_RE = embedding_RE[order_R]
    found_R = torch.full((len(order_R),), NO_EARLIER, device=embedding_RE.device)
    step = max(1, AT_A_TIME // max(len(order_R), 1))
    for start in range(0, len(order_R), step):
        part_PE = ordered_RE[start : start + step]
        end = start + len(part_PE)
        similarity_PU = part_PE @ ordered_RE[:end].T
        earlier_PU = torch.ones_like(similarity_PU, dtype=torch.bool).tril(start - 1)
        found_R[order_R[start:end]] = similarity_PU.masked_fill(~earlier_PU, NO_EARLIER).max(dim=1).values
    return found_R


def random_rank(cluster_R: np.ndarray, draw_R: np.ndarray) -> np.ndarray:
    """Each row's place, from 0, among the rows of its cluster in the order of their draws; int64."""
    order_R = np.lexsort((draw_R, cluster_R))
    sorted_R = cluster_R[order_R]
    first_R = np.searchsorted(sorted_R, sorted_R)
    rank_R = np.empty(len(order_R), np.int64)
    rank_R[order_R] = np.arange(len(order_R)) - first_R
    return rank_R
