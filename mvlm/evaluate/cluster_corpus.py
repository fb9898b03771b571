"""Clusters the rows of scored corpora, in a table beside each shard that `data.where` reads.

    cluster                the number of the row's cluster, from 0
    cluster_rank           its place in the cluster in a random order: `cluster_rank < 1000` caps a cluster's rows
    duplicate_similarity   the greatest cosine to an earlier row of the cluster: `< 0.95` drops near-duplicates

Memory grows by only 12 bytes per row: centroids are found on a sample, and the rows of as many clusters as fit are
compared at a time, for which the embeddings are read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.location import open_location
from mvlm.data.shards.staging import StagedTables
from mvlm.data.shards.tables import EMBEDDINGS, read_columns
from mvlm.errors import UserError
from mvlm.evaluate.clusters import assign, duplicate_similarity, k_means, random_rank
from mvlm.evaluate.scores import EMBEDDING
from mvlm.model.masking import Purpose, generator

CLUSTERS = "clusters"
SAMPLED = 256
"""Rows on which a cluster's centroid is found, on average."""
NO_CLUSTER = -1


class EmbeddedRows:
    """The rows of corpora, one after another, that have embeddings and have not been taken down.

    Raises:
        UserError: a corpus has shards without embeddings.
    """

    def __init__(self, folders: Sequence[str | Path], clusters: int, seed: int, cache: Cache) -> None:
        self.seed = seed
        opened = [open_location(folder, cache) for folder in folders]
        self._tables = []  # each with the first row of its shard in its corpus
        for location in opened:
            shards = location.manifest.shards
            for shard, first in zip(shards, accumulate(shards.rows, initial=0), strict=False):
                if (table := shard.table(EMBEDDINGS)) is None:
                    raise UserError(f"{location.folder} has shards without embeddings: score it first.")
                self._tables.append((location, table, first))
        decisive = "".join(table.hash for _, table, _ in self._tables) + f" {clusters} {seed}"
        decisive += "".join(f" {list(location.taken_down)}" for location in opened if location.taken_down)
        self.made_by = hashlib.sha256(decisive.encode()).hexdigest()
        self.staged = [StagedTables(folder, (CLUSTERS,), self.made_by, cache) for folder in folders]
        self.starts = list(accumulate((table.rows for _, table, _ in self._tables), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of a shard's rows have an embedding, int64, and these embeddings, fp32."""
        location, table, first = self._tables[number]
        column = read_columns(location, table, [EMBEDDING])[0][EMBEDDING].combine_chunks()
        known = column.is_valid().to_numpy(zero_copy_only=False).nonzero()[0]
        kept = np.setdiff1d(known, np.array(location.taken_down, np.int64) - first)
        values = column.take(pa.array(kept)).flatten().to_numpy(zero_copy_only=False)
        value_RE = torch.from_numpy(values.reshape(-1, column.type.list_size).astype(np.float32))
        # Rounding to 16 bits has moved their lengths away from 1, and so the cosine of two equal ones.
        return kept, torch.nn.functional.normalize(value_RE, dim=1).numpy()

    def shards(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The same for all shards, each with its first row."""
        for number in range(len(self._tables)):
            yield self.starts[number], *self.shard(number)

    def draws(self, number: int) -> np.ndarray:
        """A random number for each row of a shard, fp64 from 0 to 1, from the seed and the shard's number alone."""
        rows = self.starts[number + 1] - self.starts[number]
        return generator(self.seed, Purpose.CLUSTERS, 0, 0, number).random(rows)


def cluster_corpora(
    folders: Sequence[str | Path],
    clusters: int,
    memory_gb: float,
    device: torch.device,
    seed: int = 0,
    cache: Cache | None = None,
) -> None:
    """Cluster the rows of all corpora together, unless that has been done.

    Args:
        memory_gb: for the embeddings held at once.

    Raises:
        UserError: a corpus has no embeddings or cannot be written to, or there are fewer rows than clusters wanted.
    """
    rows = EmbeddedRows(folders, clusters, seed, cache or Cache())
    if any(staged.missing() for staged in rows.staged):
        held = max(1, int(memory_gb * 1e9 / 4))
        columns = _columns(rows, clusters, held, device)
        number = 0
        for staged in rows.staged:
            for shard in range(len(staged.location.manifest.shards)):
                part = slice(rows.starts[number], rows.starts[number + 1])
                has = columns["cluster"][part] != NO_CLUSTER
                table = {name: pa.array(values[part], mask=~has) for name, values in columns.items()}
                staged.add(shard, {CLUSTERS: pa.table(table)})
                number += 1
    for staged in rows.staged:
        staged.finish()


def _columns(rows: EmbeddedRows, clusters: int, held: int, device: torch.device) -> dict[str, np.ndarray]:
    centroid_KE = _centroids(rows, clusters, held, device)
    cluster_R = np.full(len(rows), NO_CLUSTER, np.int32)
    for first, kept, embedding in rows.shards():
        cluster_R[first + kept] = assign(torch.from_numpy(embedding).to(device), centroid_KE)[0].cpu().numpy()
    draw_R = np.concatenate([rows.draws(number) for number in range(len(rows.starts) - 1)])
    similarity_R = np.full(len(rows), np.nan, np.float32)
    size_K = np.bincount(cluster_R[cluster_R >= 0], minlength=clusters)
    for group in _groups(size_K, held // centroid_KE.shape[1]):
        chosen = np.flatnonzero((cluster_R >= group.start) & (cluster_R < group.stop))
        embedding_RE = _embeddings(rows, chosen, centroid_KE.shape[1])
        by_cluster = np.argsort(cluster_R[chosen], kind="stable")
        for cluster, members in zip(group, np.split(by_cluster, np.cumsum(size_K[group])[:-1]), strict=True):
            member_RE = torch.from_numpy(embedding_RE[members]).to(device)
            found_R = duplicate_similarity(member_RE, member_RE @ centroid_KE[cluster])
            similarity_R[chosen[members]] = found_R.cpu().numpy()
    rank_R = random_rank(cluster_R, draw_R).astype(np.int32)
    return {"cluster": cluster_R, "cluster_rank": rank_R, "duplicate_similarity": similarity_R}


def _centroids(rows: EmbeddedRows, clusters: int, held: int, device: torch.device) -> Tensor:
    """The centroids, found on a seeded sample of the rows."""
    sample = []
    for number, (_, kept, embedding) in enumerate(rows.shards()):
        wanted = min(SAMPLED * clusters, held // embedding.shape[1])
        sample.append(embedding[rows.draws(number)[kept] < wanted / len(rows)])
    sample_RE = np.concatenate(sample)
    if len(sample_RE) < clusters:
        raise UserError(
            f"{len(sample_RE):,} rows cannot make {clusters:,} clusters: give fewer --clusters, or more --memory-gb "
            f"if not all of the {len(rows):,} rows were held."
        )
    return k_means(torch.from_numpy(sample_RE).to(device), clusters, rows.seed)


def _groups(size_K: np.ndarray, most: int) -> Iterator[range]:
    """Successive clusters whose rows fit together, or a single one that does not fit."""
    first, held = 0, 0
    for cluster, size in enumerate(size_K.tolist()):
        if held + size > most and cluster > first:
            yield range(first, cluster)
            first, held = cluster, 0
        held += size
    yield range(first, len(size_K))


def _embeddings(rows: EmbeddedRows, chosen: np.ndarray, width: int) -> np.ndarray:
    """The embeddings of the rows numbered `chosen`, ascending."""
    found = np.empty((len(chosen), width), np.float32)
    for first, kept, embedding in rows.shards():
        _, at, place = np.intersect1d(chosen, first + kept, assume_unique=True, return_indices=True)
        found[at] = embedding[place]
    return found
