"""Clusters of embeddings: those of the formulas in float64, the same however little is held, and read by conditions."""

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
def made():
    """fp16 [ROWS, WIDTH]: kinds that lie far apart, by turns, and a near-duplicate of row 0."""
    rng = np.random.default_rng(3)
    values = np.eye(WIDTH)[np.arange(ROWS) % KINDS] + 0.1 * rng.normal(size=(ROWS, WIDTH))
    values[TWIN] = values[0] + 0.002 * rng.normal(size=WIDTH)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def embedded(folder, values):
    """Two corpora with embeddings, of which a row has none."""
    found, type_ = [], pa.list_(pa.float16(), WIDTH)
    for number, part in enumerate(np.split(np.arange(ROWS), [4 * SHARD])):
        out = write_shards(folder / str(number), make_rows(len(part), number), SHARD)
        tables = [
            {"embedding": pa.array([None if row == MISSING else values[row] for row in of_shard], type_)}
            for of_shard in np.split(part, range(SHARD, len(part), SHARD))
        ]
        found.append(add_tables(out, "embeddings", tables))
    return found


def table(folders, name):
    files = [folder / shard.table("clusters").file for folder in folders for shard in read_manifest(folder).shards]
    return [value for file in files for value in pq.read_table(file)[name].to_pylist()]


def test_rows_lie_nearest_to_their_cluster_and_its_columns_are_those_of_the_definitions(made, tmp_path):
    folders = embedded(tmp_path, made)
    cluster_corpora(folders, KINDS, 1.0, CPU, seed=1)
    cluster = table(folders, "cluster")
    assert [row for row in range(ROWS) if cluster[row] is None] == [MISSING]
    exact, members = made.astype(np.float64), {}
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    for row in sorted(set(range(ROWS)) - {MISSING}):
        members.setdefault(cluster[row], []).append(row)
    assert sorted(members) == list(range(KINDS))
    sums = np.stack([exact[members[each]].sum(0) for each in range(KINDS)])
    cosine = exact @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    similarity, rank = table(folders, "duplicate_similarity"), table(folders, "cluster_rank")
    for each, rows in members.items():
        assert (cosine[rows].argmax(1) == each).all()
        assert sorted(rank[row] for row in rows) == list(range(len(rows)))
        order = sorted(rows, key=lambda row: cosine[row, each])
        for place, row in enumerate(order):
            wanted = max((exact[order[:place]] @ exact[row]).tolist(), default=-1.0)
            assert abs(similarity[row] - wanted) < 1e-5
    assert (similarity[0] > 0.999) != (similarity[TWIN] > 0.999)  # one of the two that are nearly the same
    kept = Mixture(folders, where=["duplicate_similarity < 0.999 and cluster_rank < 4"])
    assert len(kept) == sum(s < 0.999 and r < 4 for s, r in zip(similarity, rank, strict=True) if s is not None)


def test_what_is_held_at_once_does_not_matter(made, tmp_path, monkeypatch):
    whole, parted = embedded(tmp_path / "whole", made), embedded(tmp_path / "parted", made)
    cluster_corpora(whole, KINDS, 1.0, CPU)
    groups = list(cluster_corpus._groups(np.array([3, 4, 9, 0, 2]), 7))
    assert groups == [range(2), range(2, 3), range(3, 5)]
    monkeypatch.setattr(cluster_corpus, "_groups", lambda size_K, most: iter(groups))
    monkeypatch.setattr(clusters, "AT_A_TIME", 30)
    cluster_corpora(parted, KINDS, ROWS * WIDTH * 4 / 1e9, CPU)
    for name in ("cluster", "cluster_rank"):
        assert table(parted, name) == table(whole, name)
    found, wanted = (np.array(table(each, "duplicate_similarity"), float) for each in (parted, whole))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_made_clusters_are_not_made_again(made, tmp_path, monkeypatch):
    folders = embedded(tmp_path, made)
    cluster_corpora(folders, KINDS, 1.0, CPU)
    before = [(folder / "manifest.json").read_bytes() for folder in folders]
    monkeypatch.setattr(cluster_corpus, "_columns", None)
    cluster_corpora(folders, KINDS, 1.0, CPU)
    assert [(folder / "manifest.json").read_bytes() for folder in folders] == before


def test_a_row_that_is_taken_down_is_no_reason_to_leave_out_its_duplicate(made, tmp_path):
    folders = embedded(tmp_path, made)
    cluster_corpora(folders, KINDS, 1.0, CPU)
    similarity = table(folders, "duplicate_similarity")
    left_out, first = sorted((0, TWIN), key=lambda row: similarity[row], reverse=True)
    assert similarity[left_out] > 0.999
    take_down(folders[0], {Mixture([folders[0]]).key(first)})
    cluster_corpora(folders, KINDS, 1.0, CPU)
    similarity = table(folders, "duplicate_similarity")
    assert similarity[left_out] < 0.999
    assert [row for row in range(ROWS) if similarity[row] is None] == sorted((MISSING, first))


def test_an_empty_cluster_goes_on_elsewhere():
    points = torch.eye(4)[[0, 0, 0, 0, 0, 0, 1, 2]]
    for seed in range(8):  # most begin at equal rows
        nearest, similarity = assign(points, k_means(points, 3, seed))
        assert len(set(nearest.tolist())) == 3 and similarity.min() > 0.999


def test_ranks_count_from_nought_in_each_cluster():
    rank = random_rank(np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.9, 0.1, 0.7, 0.2]))
    assert rank.tolist() == [1, 1, 0, 2, 0]
    assert duplicate_similarity(torch.eye(2)[[0]], torch.ones(1)).tolist() == [-1.0]


def test_too_few_rows_and_unscored_corpora_are_said(made, tmp_path):
    folders = embedded(tmp_path / "a", made)
    with pytest.raises(UserError, match="59 rows cannot make 60 clusters"):
        cluster_corpora(folders, ROWS, 1.0, CPU)
    plain = write_shards(tmp_path / "plain", make_rows(5, 0), 5)
    with pytest.raises(UserError, match="score it first"):
        cluster_corpora([plain], 2, 1.0, CPU)
