"""An order that is changed between two stops: every epoch still draws every row once, in one order from end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import make_rows, write_shards

from mvlm.checkpoint.state import OrderSpec
from mvlm.config.schema import Data
from mvlm.data.loading.sampler import make_sampler, order_of, resumed
from mvlm.data.shards.corpus import Mixture
from mvlm.errors import UserError

ROWS = 60
ORDERS = [
    order_of(data)
    for data in (
        Data(shuffle_block=8, shuffle_window=2),
        Data(shuffle_block=4, shuffle_window=2),
        Data(shuffle_block=8, shuffle_window=5),
        Data(shuffle_shards=2),
    )
]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled")
    return Mixture([write_shards(out / "a", make_rows(ROWS // 2), 7), write_shards(out / "b", make_rows(ROWS // 2), 8)])


def stored(orders):
    """As they come back from a checkpoint."""
    return tuple(map(OrderSpec.from_json, json.loads(json.dumps([order.to_json() for order in orders]))))


@settings(max_examples=60, deadline=None)
@given(
    attempts=st.lists(st.tuples(st.integers(0, 90), st.sampled_from(ORDERS)), min_size=1, max_size=6),
    whole=st.sampled_from(ORDERS),
)
def test_every_epoch_draws_every_row_once_whatever_changes_between_stops(mixture, attempts, whole):
    orders, position, drawn, wanted_at = (), 0, [], {}
    for samples, wanted in attempts:
        orders, _ = resumed(stored(orders), wanted, position, ROWS)
        assert len(orders) <= 2
        begins = range(-(-position // ROWS), -(-(position + samples) // ROWS))
        wanted_at |= dict.fromkeys(begins, wanted)
        drawn += make_sampler(mixture, 3, orders)(np.arange(position, position + samples))[0].tolist()
        position += samples
    for epoch in range(position // ROWS + 1):
        found = drawn[epoch * ROWS : (epoch + 1) * ROWS]
        if found:
            expected = make_sampler(mixture, 3, (wanted_at[epoch],))(np.arange(epoch * ROWS, (epoch + 1) * ROWS))[
                0
            ].tolist()
            assert found == expected[: len(found)] and sorted(expected) == list(range(ROWS))


def test_a_change_is_told_until_it_holds_and_may_be_taken_back():
    first, second, third = ORDERS[:3]
    orders, said = resumed((), first, 0, ROWS)
    assert (orders, said) == ((first,), "")
    orders, said = resumed(orders, second, 3 * ROWS + 1, ROWS)
    assert orders == (first, replace(second, from_epoch=4))
    assert said == (
        "The order of the samples changes with epoch 4, from blocks of 8 rows, 2 blocks together to blocks of 4 rows, "
        "2 blocks together; epoch 3, which has begun, ends as it began."
    )
    assert resumed(orders, second, 3 * ROWS + 2, ROWS) == (orders, said)
    assert resumed(orders, first, 4 * ROWS - 1, ROWS) == ((first,), "")
    assert resumed(orders, third, 4 * ROWS - 1, ROWS)[0] == (first, replace(third, from_epoch=4))
    assert resumed(orders, second, 4 * ROWS + 1, ROWS) == ((replace(second, from_epoch=4),), "")
    orders, said = resumed(orders, third, 4 * ROWS, ROWS)
    assert orders == (replace(third, from_epoch=4),) and "epoch 4, from" in said and "begun" not in said


def test_an_order_of_another_version_is_refused():
    with pytest.raises(UserError, match="order 'global' of a checkpoint is unknown to this version: update mvlm"):
        OrderSpec.from_json({"kind": "global", "parameters": {}, "from_epoch": 0})
