"""Ranks, re-ranking, recall and chance against references that share no code with them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm.evaluate import ranking


def brute_force_ranks(similarity_AN, right):
    """Sort each row in plain Python; ties in the index's order."""
    ranks, orders = [], []
    for row, answers in zip(similarity_AN.tolist(), right, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        orders.append(order)
        ranks.append(min(order.index(answer) for answer in answers))
    return ranks, orders


def padded(right):
    width = max(map(len, right))
    return np.array([list(r) + [ranking.NONE] * (width - len(r)) for r in right])


@st.composite
def searches(draw):
    """Small whole-number features, so that products are exact and many are equal."""
    queries, items, width = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    right = [rng.choice(items, rng.integers(1, min(items, 5) + 1), replace=False).tolist() for _ in range(queries)]
    return rng.integers(-1, 2, (queries, width)), rng.integers(-1, 2, (items, width)), right


@settings(max_examples=150, deadline=None)
@given(search=searches(), top=st.integers(1, 12), tile=st.sampled_from([1, 10, 1 << 22]))
def test_ranks_of_any_tile_equal_brute_force(search, top, tile):
    query, item, right = search
    expected, orders = brute_force_ranks(query @ item.T, right)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "TILE_VALUES", tile)
        rank_A, top_AK = ranking.rank_by_similarity(
            torch.tensor(query).float(), torch.tensor(item).float(), torch.tensor(padded(right)), top
        )
    assert rank_A.tolist() == expected
    assert top_AK.tolist() == [order[:top] for order in orders]


def test_all_equal_features_earn_no_more_than_chance():
    count = 40
    right = torch.arange(count)[:, None]
    rank_A, _ = ranking.rank_by_similarity(torch.ones(count, 4), torch.ones(count, 4), right, 10)
    assert ranking.recalls(rank_A.numpy()) == ranking.chance(np.ones(count, dtype=int), count)


@settings(max_examples=150, deadline=None)
@given(search=searches(), candidates=st.integers(1, 9), seed=st.integers(0, 99))
def test_reranking_equals_brute_force(search, candidates, seed):
    query, item, right = search
    rank, orders = brute_force_ranks(query @ item.T, right)
    score_AN = np.random.default_rng(seed).integers(0, 3, (len(query), len(item))).astype(np.float32)
    top_AK = np.array([order[:candidates] for order in orders])
    first_AK = ranking.rerank(top_AK, np.take_along_axis(score_AN, top_AK, axis=1))
    got = ranking.reranked_rank(np.array(rank), first_AK, padded(right))

    for a, order in enumerate(orders):
        front = sorted(order[:candidates], key=lambda n: (-score_AN[a, n], n))
        whole = front + order[candidates:]
        assert first_AK[a].tolist() == front
        assert got[a] == min(whole.index(answer) for answer in right[a])


def test_a_matcher_that_cannot_tell_gains_nothing_from_itc():
    top_AK = np.array([[7, 2, 5], [0, 9, 1]])
    assert ranking.rerank(top_AK, np.zeros((2, 3), dtype=np.float32)).tolist() == [[2, 5, 7], [0, 1, 9]]


def test_captions_of_each_image():
    owner = np.array([0, 0, 1, 3, 3, 3])
    n = ranking.NONE
    assert ranking.right_items(owner, 4).tolist() == [[0, 1, n], [2, n, n], [n, n, n], [3, 4, 5]]
    shuffled = np.array([2, 0, 2, 1])
    assert ranking.right_items(shuffled, 3).tolist() == [[1, n], [3, n], [0, 2]]


def test_recall_counts_ranks_below_k():
    assert ranking.recalls(np.array([0, 1, 4, 5, 9, 10, 99, 0])) == {"r1": 2 / 8, "r5": 4 / 8, "r10": 6 / 8}


def test_chance_agrees_with_simulation():
    right, items, draws = np.array([1, 3, 3, 8]), 30, 20_000
    rng = np.random.default_rng(0)
    hits = {k: [] for k in (1, 5, 10)}
    for count in right:
        places = rng.random((draws, items)).argsort(axis=1)[:, :count].min(axis=1)
        for k in hits:
            hits[k].append((places < k).mean())
    chance = ranking.chance(right, items)
    for k in hits:
        assert chance[f"r{k}"] == pytest.approx(np.mean(hits[k]), abs=0.006)


def test_chance_of_one_right_item_is_k_of_n_and_of_few_items_is_one():
    assert ranking.chance(np.ones(3, dtype=int), 1000) == {"r1": 0.001, "r5": 0.005, "r10": 0.01}
    assert ranking.chance(np.ones(3, dtype=int), 4) == {"r1": 0.25, "r5": 1.0, "r10": 1.0}
