"""Ranks, re-ranking, recall and chance against independent references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm.evaluate import ranking


def brute_force_ranks(similarity_AN, right):
    """Sort each row in plain Python, ties by index."""
    ranks, orders = [], []
    for row, answers in zip(similarity_AN.tolist(), right, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        orders.append(order)
        ranks.append(min(order.index(answer) for answer in answers))
    return ranks, orders


def as_answers(right):
    """As `RelevantItems`, each query with a label of its own."""
    queries = np.arange(len(right))
    pairs = [(query, item) for query, items in enumerate(right) for item in items]
    return ranking.RelevantItems(
        ranking.Lists.of(queries, queries, len(right)), ranking.Lists.of(*np.array(pairs).T, len(right))
    )


@st.composite
def searches(draw):
    """Features of small integers, so that products are exact and often tie."""
    queries, items, width = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    right = [rng.choice(items, rng.integers(1, min(items, 5) + 1), replace=False).tolist() for _ in range(queries)]
    return rng.integers(-1, 2, (queries, width)), rng.integers(-1, 2, (items, width)), right


@settings(max_examples=150, deadline=None)
@given(search=searches(), top=st.integers(1, 12))
def test_ranks_equal_brute_force(search, top):
    query, item, right = search
    expected, orders = brute_force_ranks(query @ item.T, right)
    right_AR = torch.from_numpy(as_answers(right).padded(np.arange(len(query))))
    rank_A, top_AK = ranking.rank_tile(torch.tensor(query @ item.T).float(), right_AR, top)
    assert rank_A.tolist() == expected
    assert top_AK.tolist() == [order[:top] for order in orders]


def test_equal_features_score_no_better_than_chance():
    count = 40
    rank_A, _ = ranking.rank_tile(torch.ones(count, count), torch.arange(count)[:, None], 10)
    passed_1B = ranking.passed(rank_A.numpy(), np.ones((1, count)))
    recalls = {f"r{k}": ranking.recall(passed_1B, k).item() for k in ranking.RECALLS}
    assert recalls == ranking.chance(np.ones(count, dtype=int), count)


@settings(max_examples=150, deadline=None)
@given(search=searches(), candidates=st.integers(1, 9), seed=st.integers(0, 99), tile=st.sampled_from([1, 1 << 24]))
def test_reranking_equals_brute_force(search, candidates, seed, tile):
    query, item, right = search
    rank, orders = brute_force_ranks(query @ item.T, right)
    score_AN = np.random.default_rng(seed).integers(0, 3, (len(query), len(item))).astype(np.float32)
    top_AK = np.array([order[:candidates] for order in orders])
    first_AK = ranking.rerank(top_AK, np.take_along_axis(score_AN, top_AK, axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "RERANKED_VALUES", tile)
        got = ranking.reranked_rank(np.array(rank), first_AK, as_answers(right))

    for a, order in enumerate(orders):
        front = sorted(order[:candidates], key=lambda n: (-score_AN[a, n], n))
        whole = front + order[candidates:]
        assert first_AK[a].tolist() == front
        assert got[a] == min(whole.index(answer) for answer in right[a])


@pytest.mark.filterwarnings("error")
def test_no_log_odds_are_too_large_for_a_probability():
    odds = [-1000.0, -90.0, -5.0, 0.0, 0.5, 90.0, 1000.0]
    found = ranking.match_probability(np.array(odds, np.float32))
    assert found.tolist() == pytest.approx([0, 0, 1 / (1 + math.exp(5)), 0.5, 1 / (1 + math.exp(-0.5)), 1, 1])


def test_an_uninformative_matcher_gains_nothing_from_the_order_of_itc():
    top_AK = np.array([[7, 2, 5], [0, 9, 1]])
    assert ranking.rerank(top_AK, np.zeros((2, 3), dtype=np.float32)).tolist() == [[2, 5, 7], [0, 1, 9]]


LABELLED = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(captions=LABELLED)
def test_right_answers_are_equal_captions_and_their_images(captions):
    """Against asking, for every pair, whether the image has a caption with that label."""
    owner, label = np.array(captions).T
    _, label = np.unique(label, return_inverse=True)
    of_image, of_caption = ranking.answers(owner, 5, label)
    images_of = {
        caption: {owner[c] for c in range(len(owner)) if label[c] == label[caption]} for caption in range(len(owner))
    }
    for image in range(5):
        right = [caption for caption in range(len(owner)) if image in images_of[caption]]
        assert sorted(of_image[image]) == right
        padded = of_image.padded(np.array([image]))[0]
        assert sorted(padded[padded != ranking.NONE]) == right
    for caption, right in images_of.items():
        assert sorted(of_caption[caption]) == sorted(right)
    assert of_image.counts().tolist() == [len(of_image[image]) for image in range(5)]
    assert of_caption.counts().tolist() == [len(of_caption[caption]) for caption in range(len(owner))]


def test_many_equal_captions_take_the_space_of_one():
    count = 3000
    owner, label = np.arange(2 * count) // 2, np.arange(2 * count) // 2 * (np.arange(2 * count) % 2)
    of_image, of_caption = ranking.answers(owner, count, label)
    assert of_image.counts().tolist()[1:] == [count + 2] * (count - 1), "each image's own caption and everybody's"
    kept = sum(part.nbytes for each in (of_image, of_caption) for part in (each.labels.item, each.items.item))
    assert kept < 8 * 20 * count


@settings(max_examples=100, deadline=None)
@given(rank=st.lists(st.integers(0, 12), min_size=1, max_size=9), data=st.data())
def test_weights_count_as_repeated_queries(rank, data):
    counted = st.lists(st.integers(0, 3), min_size=len(rank), max_size=len(rank)).filter(any)
    weights = data.draw(st.lists(counted, min_size=1, max_size=3))
    passed_RB, repeated = ranking.passed(np.array(rank), np.array(weights)), [np.repeat(rank, each) for each in weights]
    assert ranking.median_rank(passed_RB).tolist() == [np.median(each) + 1 for each in repeated]
    for k in (1, 5, 10):
        assert ranking.recall(passed_RB, k) == pytest.approx([np.mean(each < k) for each in repeated])


def test_recall_counts_ranks_below_k():
    passed_1B = ranking.passed(np.array([0, 1, 4, 5, 9, 10, 99, 0]), np.ones((1, 8)))
    assert [ranking.recall(passed_1B, k).item() for k in (1, 5, 10)] == [2 / 8, 4 / 8, 6 / 8]


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


def test_chance_is_k_of_n_for_one_right_item_and_at_most_one():
    assert ranking.chance(np.ones(3, dtype=int), 1000) == {"r1": 0.001, "r5": 0.005, "r10": 0.01}
    assert ranking.chance(np.ones(3, dtype=int), 4) == {"r1": 0.25, "r5": 1.0, "r10": 1.0}
