"""Clusters of embeddings compared with their definitions in float64, whatever the memory, and used in conditions."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_shards import make_rows, write_shards
from made_tables import add_tables

from data_tools.takedown import take_down
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.schema import read_manifest
from mvlm.errors import UserError
from mvlm.evaluate import cluster_corpus, clusters
from mvlm.evaluate.cluster_corpus import cluster_corpora
from mvlm.evaluate.clusters import assign, duplicate_similarity, k_means, random_rank

CPU = torch.device("cpu")
ROWS, SHARD, WIDTH, KINDS = 60, 7, 8, 5
MISSING, TWIN = 11, 20


@pytest.fixture(scope="module")
def embeddings():
    """fp16 [ROWS, WIDTH]: rows of distant clusters in turn, and a near-duplicate of row 0."""
    rng = np.random.default_rng(3)
    values = np.eye(WIDTH)[np.arange(ROWS) % KINDS] + 0.1 * rng.normal(size=(ROWS, WIDTH))
    values[TWIN] = values[0] + 0.002 * rng.normal(size=WIDTH)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def embedded(folder, values):
    """Two corpora with embeddings, which one row lacks."""
    found, type_ = [], pa.list_(pa.float16(), WIDTH)
    for number, part in enumerate(np.split(np.arange(ROWS), [4 * SHARD])):
        out = write_shards(folder / str(number), make_rows(len(part), number), SHARD)
        tables = [
            {"embedding": pa.array([None if row == MISSING else values[row] for row in of_shard], type_)}
            for of_shard in np.split(part, range(SHARD, len(part), SHARD))
        ]
        found.append(add_tables(out, "embeddings", tables))
    return found


def column(folders, name):
    files = [folder / shard.table("clusters").file for folder in folders for shard in read_manifest(folder).shards]
    return [value for file in files for value in pq.read_table(file)[name].to_pylist()]


def test_clusters_ranks_and_similarities_match_their_definitions(embeddings, tmp_path):
    folders = embedded(tmp_path, embeddings)
    cluster_corpora(folders, KINDS, 1.0, CPU, seed=1)
    cluster = column(folders, "cluster")
    assert [row for row in range(ROWS) if cluster[row] is None] == [MISSING]
    exact, members = embeddings.astype(np.float64), {}
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    for row in sorted(set(range(ROWS)) - {MISSING}):
        members.setdefault(cluster[row], []).append(row)
    assert sorted(members) == list(range(KINDS))
    sums = np.stack([exact[members[each]].sum(0) for each in range(KINDS)])
    cosine = exact @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    similarity, rank = column(folders, "duplicate_similarity"), column(folders, "cluster_rank")
    for each, rows in members.items():
        assert (cosine[rows].argmax(1) == each).all()
        assert sorted(rank[row] for row in rows) == list(range(len(rows)))
        order = sorted(rows, key=lambda row: cosine[row, each])
        for place, row in enumerate(order):
            wanted = max((exact[order[:place]] @ exact[row]).tolist(), default=-1.0)
            assert abs(similarity[row] - wanted) < 1e-5
    assert (similarity[0] > 0.999) != (similarity[TWIN] > 0.999)  # only one of the two near-duplicates
    kept = Mixture(folders, where=["duplicate_similarity < 0.999 and cluster_rank < 4"])
    assert len(kept) == sum(s < 0.999 and r < 4 for s, r in zip(similarity, rank, strict=True) if s is not None)


def test_the_result_does_not_depend_on_the_memory_used(embeddings, tmp_path, monkeypatch):
    whole, parted = embedded(tmp_path / "whole", embeddings), embedded(tmp_path / "parted", embeddings)
    cluster_corpora(whole, KINDS, 1.0, CPU)
    groups = list(cluster_corpus._groups(np.array([3, 4, 9, 0, 2]), 7))
    assert groups == [range(2), range(2, 3), range(3, 5)]
    monkeypatch.setattr(cluster_corpus, "_groups", lambda size_K, most: iter(groups))
    monkeypatch.setattr(clusters, "AT_A_TIME", 30)
    cluster_corpora(parted, KINDS, ROWS * WIDTH * 4 / 1e9, CPU)
    for name in ("cluster", "cluster_rank"):
        assert column(parted, name) == column(whole, name)
    found, wanted = (np.array(column(each, "duplicate_similarity"), float) for each in (parted, whole))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_existing_clusters_are_not_computed_again(embeddings, tmp_path, monkeypatch):
    folders = embedded(tmp_path, embeddings)
    cluster_corpora(folders, KINDS, 1.0, CPU)
    before = [(folder / "manifest.json").read_bytes() for folder in folders]
    monkeypatch.setattr(cluster_corpus, "_columns", None)
    cluster_corpora(folders, KINDS, 1.0, CPU)
    assert [(folder / "manifest.json").read_bytes() for folder in folders] == before


def test_a_row_taken_down_does_not_count_as_a_duplicate_of_another(embeddings, tmp_path):
    folders = embedded(tmp_path, embeddings)
    cluster_corpora(folders, KINDS, 1.0, CPU)
    similarity = column(folders, "duplicate_similarity")
    left_out, first = sorted((0, TWIN), key=lambda row: similarity[row], reverse=True)
    assert similarity[left_out] > 0.999
    take_down(folders[0], {Mixture([folders[0]]).key(first)})
    cluster_corpora(folders, KINDS, 1.0, CPU)
    similarity = column(folders, "duplicate_similarity")
    assert similarity[left_out] < 0.999
    assert [row for row in range(ROWS) if similarity[row] is None] == sorted((MISSING, first))


def test_an_empty_cluster_moves_elsewhere():
    points = torch.eye(4)[[0, 0, 0, 0, 0, 0, 1, 2]]
    for seed in range(8):  # most start from equal rows
        nearest, similarity = assign(points, k_means(points, 3, seed))
        assert len(set(nearest.tolist())) == 3 and similarity.min() > 0.999


def test_ranks_count_from_zero_in_each_cluster():
    rank = random_rank(np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.9, 0.1, 0.7, 0.2]))
    assert rank.tolist() == [1, 1, 0, 2, 0]


def test_the_only_row_of_a_cluster_has_no_duplicate():
    assert duplicate_similarity(torch.eye(2)[[0]], torch.ones(1)).tolist() == [-1.0]


def test_too_few_rows_and_unscored_corpora_are_refused(embeddings, tmp_path):
    folders = embedded(tmp_path / "a", embeddings)
    with pytest.raises(UserError, match="59 rows cannot make 60 clusters"):
        cluster_corpora(folders, ROWS, 1.0, CPU)
    plain = write_shards(tmp_path / "plain", make_rows(5, 0), 5)
    with pytest.raises(UserError, match="score it first"):
        cluster_corpora([plain], 2, 1.0, CPU)
