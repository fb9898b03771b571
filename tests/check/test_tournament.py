"""Which nodes are paired, and what the speeds of pairs say about a node."""

import itertools

import pytest

from mvlm.check.nodes.tournament import Speed, Standings, rounds


@pytest.mark.parametrize("count", range(9))
def test_every_pair_meets_once_in_the_fewest_possible_rounds(count):
    played = rounds(count)
    assert sorted(pair for of_round in played for pair in of_round) == list(itertools.combinations(range(count), 2))
    for of_round in played:
        nodes = [node for pair in of_round for node in pair]
        assert len(nodes) == len(set(nodes))
    assert len(played) == (0 if count < 2 else count - 1 + count % 2)


@pytest.mark.parametrize(("count", "most"), [(16, 15), (17, 15), (64, 15), (512, 18), (1001, 20)])
def test_among_many_nodes_each_meets_a_few_others_once(count, most):
    played = rounds(count)
    assert len(played) == most
    pairs = [pair for of_round in played for pair in of_round]
    assert len(pairs) == len(set(pairs))
    for of_round in played:
        nodes = [node for pair in of_round for node in pair]
        assert len(nodes) == len(set(nodes)) == count - count % 2


def test_a_slow_node_among_many_is_found_from_the_pairs_that_were_tried():
    table = Standings(512)
    for pair in (pair for of_round in rounds(512) for pair in of_round):
        table.add(pair, Speed(1e9 if set(pair) & {7, 300} else 10e9, 1e-5))
    assert table.slow(0.5) == {7, 300}


def standings(count, slow=(), factor=0.1):
    table = Standings(count)
    for pair in itertools.combinations(range(count), 2):
        table.add(pair, Speed(10e9 * (factor if set(pair) & set(slow) else 1.0), 1e-5))
    return table


@pytest.mark.parametrize(("count", "slow"), [(3, {2}), (4, {0}), (4, {0, 3}), (16, {3, 4, 5}), (8, set())])
def test_slow_nodes_are_distinguished_from_their_partners(count, slow):
    assert standings(count, slow).slow(0.5) == slow


def test_one_slow_link_makes_neither_of_its_nodes_slow():
    table = standings(3)
    table.speeds[0, 1] = Speed(1e8, 1e-5)
    assert table.slow(0.5) == set()


def test_of_two_nodes_neither_can_be_called_slow():
    assert standings(2, {1}).slow(0.5) == set()


def test_the_better_of_two_measurements_is_kept():
    table = Standings(2)
    table.add((0, 1), Speed(1e9, 2e-5))
    table.add((0, 1), Speed(5e8, 1e-5))
    assert table.speeds == {(0, 1): Speed(1e9, 1e-5)}


def test_a_node_that_fails_with_every_partner_is_distinguished_from_a_failing_link():
    table = Standings(4)
    table.add((0, 3), "timed out")
    table.add((1, 2), Speed(1e9, 1e-5))
    assert table.out() == set()
    table.add((1, 3), "timed out")
    assert table.out() == table.unreachable() == {3}
    table.add((2, 3), Speed(1e9, 1e-5))
    assert table.unreachable() == set()
