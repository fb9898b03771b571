"""What the ranks of an ITM group exchange, for any number of ranks, each a thread of one process."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from mvlm.batch import Encoded
from mvlm.config.schema import Objectives
from mvlm.model.losses.itm import NegativeSampler
from mvlm.training import span as spans
from mvlm.training.match_groups import MatchGroups
from mvlm.training.span import Exchange, Span, exchange_bytes, span_shape
from mvlm.training.warnings import groups_warning


class Ranks:
    """Ranks that are threads and gather tensors from each other.

    Attributes:
        shapes: for each rank, the shapes of the tensors that it gathered, in order.
    """

    def __init__(self, world: int) -> None:
        self.world, self.shapes = world, [[] for _ in range(world)]
        self._given: list[Tensor | None] = [None] * world
        self._groups: dict[int, list[threading.Barrier]] = {}

    def gather(self, rank: int, among: int, own: Tensor) -> Tensor:
        first, barrier = rank // among * among, self._barriers(among)[rank // among]
        self._given[rank] = own.detach()
        barrier.wait(60)
        gathered = torch.stack(self._given[first : first + among])  # type: ignore[arg-type]
        barrier.wait(60)
        self.shapes[rank].append(tuple(gathered.shape))
        return gathered

    def _barriers(self, among: int) -> list[threading.Barrier]:
        return self._groups.setdefault(among, [threading.Barrier(among) for _ in range(self.world // among)])

    def run(self, act: Callable[[int], Any]) -> list[Any]:
        """What `act` returns for every rank, in order."""
        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(act, range(self.world)))


LAYOUTS = [
    # group, ranks and pairs of a micro-batch; and the resulting ranks and micro-batches of a span
    (4, 2, 8, 1, 1),
    (8, 4, 4, 2, 1),
    (16, 4, 4, 4, 1),
    (16, 2, 24, 2, 1),  # groups that end within a micro-batch
    (16, 2, 4, 2, 2),
    (32, 1, 4, 1, 8),
    (12, 2, 4, 2, 3),  # neither a group nor the pairs computed at once are a multiple of the other
    (6, 3, 4, 3, 1),
]


@pytest.mark.parametrize(("group", "world", "pairs", "ranks", "waves"), LAYOUTS)
@pytest.mark.parametrize("buffer", [1, 2**30])
def test_tokens_come_from_the_drawn_pair_and_gradients_go_back_to_it(
    group: int, world: int, pairs: int, ranks: int, waves: int, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert span_shape(group, world, pairs) == (ranks, waves)
    monkeypatch.setattr(spans, "BUFFER", buffer)
    check(group, world, pairs, length=3)


@pytest.mark.parametrize(("group", "world"), [(512, 512), (64, 128)])
def test_with_one_pair_per_rank_a_group_spans_as_many_ranks_as_pairs(group: int, world: int) -> None:
    assert span_shape(group, world, 1) == (group, 1)
    assert {shape[0] for shape in check(group, world, 1, length=2)} == {group}


def check(group: int, world: int, pairs: int, length: int) -> list[tuple[int, ...]]:
    """Compare the exchange with indexing all tokens in one tensor; the shapes that every rank gathered."""
    ranks, waves = span_shape(group, world, pairs)
    whole = world * waves * pairs  # all the pairs of a step
    generator = torch.Generator().manual_seed(0)
    tokens_GLD, weight_GLD = (torch.randn(whole, length, 3, generator=generator).double() for _ in range(2))
    features = [torch.nn.functional.normalize(torch.randn(whole, 8, generator=generator), dim=-1) for _ in range(2)]
    ids = [torch.randint(0, 2 * whole, (whole,), generator=generator) for _ in range(2)]
    everybody, position_G = Encoded(*features, *ids), torch.arange(whole) + 10**9
    sampler, temperature = NegativeSampler(group, seed=5), torch.tensor([0.1])
    expected_G2 = torch.stack(sampler.draw(everybody, everybody, position_G, temperature), 1)
    counted_G3 = sampler.counted(torch.stack(ids, 1), whole)
    plain_GLD = tokens_GLD.clone().requires_grad_()
    (plain_GLD[expected_G2[:, 0]] * weight_GLD).sum().backward()
    among = Ranks(world)

    def act(rank: int) -> None:
        span = Span(ranks, waves, pairs, rank % ranks, lambda own: among.gather(rank, ranks, own))
        starts = [(wave * world + rank) * pairs for wave in range(waves)]
        own_m = torch.cat([torch.arange(start, start + pairs) for start in starts])
        first = (rank // ranks * ranks) * pairs  # of the span
        known_J3 = span.whole(torch.stack([ids[0][own_m], ids[1][own_m], position_G[own_m]], 1))
        assert known_J3[:, 2].tolist() == position_G[first : first + len(known_J3)].tolist()
        groups = MatchGroups(span, sampler, [], known_J3[:, :2], known_J3[:, 2])
        owns = [Encoded(*(x[start : start + pairs] for x in (*features, *ids))) for start in starts]
        row_m2 = groups._draw(owns, temperature)
        assert (row_m2 + first).tolist() == expected_G2[own_m].tolist()
        counted = torch.cat([groups.counted(wave) for wave in range(waves)])
        assert counted.tolist() == counted_G3[own_m].tolist()
        own_mLD = tokens_GLD[own_m].clone().requires_grad_()
        image_m, image_Rm = row_m2[:, 0], span.gather(row_m2)[:, :, 0]
        found_mLD = Exchange.apply(own_mLD, span, image_m, image_Rm)
        assert torch.equal(found_mLD, tokens_GLD[expected_G2[own_m, 0]])
        (found_mLD * weight_GLD[own_m]).sum().backward()
        torch.testing.assert_close(own_mLD.grad, plain_GLD.grad[own_m])

    among.run(act)
    assert all(shapes == among.shapes[0] for shapes in among.shapes)
    return among.shapes[0]


def test_shapes_do_not_depend_on_which_pairs_are_drawn() -> None:
    """So the host does not have to wait for the device."""
    shapes = []
    for drawn in (0, 7):
        among = Ranks(4)

        def act(rank: int, among: Ranks = among, drawn: int = drawn) -> None:
            span = Span(4, 1, 2, rank, lambda own: among.gather(rank, 4, own))
            row_m = torch.full((2,), drawn)
            own = torch.ones(2, 3, 4, requires_grad=True)
            Exchange.apply(own, span, row_m, span.gather(row_m)).sum().backward()
            assert own.grad.sum() == (96.0 if rank == drawn // 2 else 0.0)

        among.run(act)
        shapes.append(among.shapes)
    assert shapes[0] == shapes[1]


def test_the_bytes_of_an_exchange_are_counted() -> None:
    image, text = 100, 10
    assert exchange_bytes((1, 1), 8, (image, text)) == 0
    assert exchange_bytes((4, 1), 8, (image, text)) == 2 * 4 * 8 * image
    assert exchange_bytes((4, 2), 8, (image, text)) == 2 * 4 * 16 * image + 2 * 16 * 110
    huge = spans.BUFFER
    assert exchange_bytes((4, 1), 8, (huge, text)) == 2 * 4 * huge  # one pair of each rank at a time


@pytest.mark.parametrize(
    ("batch", "ranks", "pairs", "at_once", "remedy"),
    [
        (512, 8, 64, 512, None),
        (512, 512, 1, 512, None),
        (512, 1, 32, 32, 32),
        (512, 2, 8, 16, 16),
        (192, 1, 96, 96, 48),  # larger than a group of 64, and no multiple of it
        (64, 1, 1, 1, None),  # no smaller group has a negative
    ],
)
def test_the_suggested_group_size_avoids_a_second_pass(
    batch: int, ranks: int, pairs: int, at_once: int, remedy: int | None
) -> None:
    said = groups_warning(Objectives(), batch, ranks, pairs)
    assert bool(said) == (span_shape(64, ranks, pairs)[1] > 1)
    assert not said or f"groups of 64 do not fit in the {at_once} pairs computed at once" in said
    found = re.search(r"objectives.itm_group = (\d+)", said)
    assert (int(found[1]) if found else None) == remedy
    assert not remedy or not groups_warning(Objectives(itm_group=remedy), batch, ranks, pairs)
    assert not groups_warning(Objectives(itm=0.0), batch, ranks, pairs)
