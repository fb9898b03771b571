"""Stages draw each data set in its own order from where it stands, the same on any ranks and after any kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm.checkpoint.state import BLOCKS, GLOBAL, OrderSpec, StageState, TrainState
from mvlm.config.schema import Config
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.streams import Drawing, begin_stage, end_stage, remembered, reordered, taken
from mvlm.data.samples.pairs import PairDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.training.ledger import ledger
from tests.conftest import pair_args
from tests.data.made_shards import make_rows, write_shards

BATCH = 12


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from data_tools.__main__ import main

    home = tmp_path_factory.mktemp("sets")
    for name, count in (("a", 40), ("b", 24), ("c", 16)):
        words = ["synth", "--task", "caption", "--count", str(count), "--seed", str(count), "--out", str(home / name)]
        assert main(words) == 0
    return {name: str(home / name) for name in "abc"}


@pytest.mark.parametrize("shares", [[3, 5], [1, 1, 1], [7], [40, 24, 16, 1], [2**40, 3, 2**39]])
def test_each_draw_takes_from_exactly_one_data_set_and_the_shares_are_kept(shares: list[int]) -> None:
    positions = np.arange(500)
    counts = taken(shares, positions)
    assert (counts.sum(0) == positions).all()
    steps = np.diff(counts, axis=1)
    assert set(np.unique(steps)) <= {0, 1}
    expected = np.outer(np.array(shares) / sum(shares), positions)
    assert np.abs(counts - expected).max() <= len(shares)


STAGES = [("a",), ("a", "b"), ("b",), ("a", "c"), ("a", "b", "c")]
STEPS = 4


def stage(number: int) -> StageState:
    return StageState(number, "", 0, 0, 0, BATCH, (), (), ())


def stream(sets: dict[str, str], tokenizer: Any, kills: dict[int, int]) -> tuple[str, dict[str, list[int]]]:
    """The hash of all samples of the stages, and for each data set its rows in the order drawn.

    Args:
        kills: steps at which the run is killed, and how many ranks resume it, from the state as JSON keeps it.
    """
    config, state, seen = Config(), TrainState(0, 0, 5, ""), hashlib.sha256()
    data, objectives, _, seed = pair_args(config)
    rows: dict[str, list[int]] = {name: [] for name in "abc"}
    world = 1
    for number, names in enumerate(STAGES):
        mixture = Mixture([sets[name] for name in names])
        dataset = PairDataset(mixture, tokenizer, data, objectives, 32, seed, (4, 4))
        state = begin_stage(state, stage(number), mixture, OrderSpec(GLOBAL), together=False)
        end = state.step + STEPS
        while state.step < end:
            if state.step in kills:
                state = TrainState.from_json(json.loads(json.dumps(state.to_json())))
                world = kills[state.step]
            samples = {}
            drawing = Drawing.of(state, mixture, 5)
            assert drawing
            dataset.is_continued = drawing.is_continued
            for rank in range(world):
                for position, row, occurrence in step_of(dataset, drawing, state, rank, world):
                    samples[position] = row, occurrence
            for position in sorted(samples):
                row, occurrence = samples[position]
                sample = dataset.sample(position, row, occurrence)
                seen.update(f"{position} {row} {sample.text_L.tolist()} {sample.patch_mask_N.tolist()}".encode())
                corpus, local = mixture.locate(row)
                rows[Path(str(corpus.folder)).name].append(local)
            state = TrainState(**(vars(state) | {"step": state.step + 1, "samples_seen": state.samples_seen + BATCH}))
    assert end_stage(state).stages[-1].ends
    return seen.hexdigest(), rows


def step_of(
    dataset: PairDataset, drawing: Drawing, state: TrainState, rank: int, world: int
) -> Iterator[tuple[int, int, int]]:
    """What a rank draws in the next step, with a loader that begins there."""
    sampler = drawing.sampler(state.order)
    arguments = {"global_batch": BATCH, "micro_batch": BATCH // world // (1 if world == 4 else 2)}
    loader = Loader(dataset, sampler, **arguments, rank=rank, world=world, start_position=state.samples_seen, workers=0)
    for _ in range(loader.accumulation):
        yield from next(loader._micro_batches)
    loader.close()


def test_five_kills_and_changes_of_ranks_change_no_sample(sets: dict[str, str], tokenizer: Any) -> None:
    undisturbed, rows = stream(sets, tokenizer, {})
    kills = {0: 2, 4: 3, 7: 1, 8: 4, 16: 6}
    assert stream(sets, tokenizer, kills) == (undisturbed, rows)
    for name, count in (("a", 40), ("b", 24), ("c", 16)):
        for first in range(0, len(rows[name]), count):
            epoch = rows[name][first : first + count]
            assert len(set(epoch)) == len(epoch), f"a row of {name} came again before the rest"
    assert len(rows["a"]) > 40 and len(rows["b"]) > 24


@pytest.mark.campaign
def test_a_hundred_kills_and_changes_of_ranks_change_no_sample(sets: dict[str, str], tokenizer: Any) -> None:
    undisturbed, generator = stream(sets, tokenizer, {}), np.random.default_rng(1)
    killed = 0
    while killed <= 100:
        steps = generator.choice(len(STAGES) * STEPS, 12, replace=False).tolist()
        kills = {step: int(generator.choice([1, 2, 3, 4, 6])) for step in steps}
        assert stream(sets, tokenizer, kills) == undisturbed
        killed += len(kills)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_weight_of_the_only_data_set_of_a_stage_repeats_no_row_too_early_and_no_masks(
    sets: dict[str, str], weight: float
) -> None:
    state, rows, visits = TrainState(0, 0, 5, ""), [], set()
    for number, weights in enumerate([(weight,), (), (weight,)]):
        mixture = Mixture([sets["b"]], weights)
        state = begin_stage(state, stage(number), mixture, OrderSpec(GLOBAL), together=False)
        drawing = Drawing.of(state, mixture, 5)
        assert drawing
        drawn = np.arange(state.samples_seen, state.samples_seen + 32)
        numbers, occurrences = drawing.sampler(state.order)(drawn)
        rows += numbers.tolist()
        visits |= set(zip((drawn // mixture.per_epoch).tolist(), occurrences.tolist(), numbers.tolist(), strict=True))
        state = replace(state, samples_seen=state.samples_seen + 32)
    for epoch in range(4):
        assert sorted(rows[24 * epoch : 24 * (epoch + 1)]) == list(range(24))
    assert len(visits) == len(rows)


def test_a_change_of_order_can_be_withdrawn_before_it_takes_effect(sets: dict[str, str]) -> None:
    alone, blocks = Mixture([sets["a"]]), OrderSpec(BLOCKS, {"block": 2, "window": 2})
    state = TrainState(0, 0, 5, "")
    for number, wanted in enumerate([OrderSpec(GLOBAL), blocks, OrderSpec(GLOBAL)]):
        state = begin_stage(state, stage(number), alone, wanted, together=False)
        state = replace(state, samples_seen=state.samples_seen + 8)
    assert remembered(state)[0].order == state.order == (OrderSpec(GLOBAL),)


def test_a_changed_order_takes_effect_with_the_next_epoch_of_each_data_set(sets: dict[str, str]) -> None:
    both, blocks = Mixture([sets["a"], sets["b"]]), OrderSpec(BLOCKS, {"block": 2, "window": 2})
    state = begin_stage(TrainState(0, 0, 5, ""), stage(0), both, OrderSpec(GLOBAL), together=False)
    state = replace(state, samples_seen=64)
    state = replace(state, samples_seen=72, streams=reordered(state, OrderSpec(GLOBAL)))
    state = replace(state, streams=reordered(state, blocks))
    assert [[order.from_epoch for order in stream.order] for stream in state.streams] == [[0, 2], [0, 2]]
    assert [stream.order[-1].kind for stream in state.streams] == [BLOCKS, BLOCKS]
    assert remembered(state) == state.streams


def test_a_stage_may_draw_pairs_where_another_drew_images(tmp_path: Path) -> None:
    rows, state = make_rows(6), TrainState(0, 0, 5, "")
    shards = write_shards(tmp_path / "shards", rows)
    for number, pairs in enumerate([False, True, False]):
        mixture = Mixture([shards], pairs=pairs)
        state = begin_stage(state, stage(number), mixture, OrderSpec(GLOBAL), together=False)
        state = replace(state, samples_seen=state.samples_seen + 4)
    captions = sum(len(row["captions"]) for row in rows)
    assert [(stream.pairs, stream.per_epoch) for stream in state.streams] == [(False, 6), (True, captions)]
    assert [each.begins for each in state.stages] == [(0,), (0,), (4,)]
    assert [line["drawn"][0]["of"] for line in ledger(state)] == ["rows", "pairs", "rows"]


def test_a_stage_with_a_stream_for_each_data_set_refuses_the_same_rows_twice(sets: dict[str, str]) -> None:
    """They would be drawn twice in succession; in one order they are merely drawn twice as often."""
    state, twice = TrainState(0, 0, 5, ""), Mixture([sets["a"], sets["b"], sets["a"]])
    with pytest.raises(UserError, match=r"names the same rows twice .*/a, .*/a.*: name them once"):
        begin_stage(state, stage(0), twice, OrderSpec(GLOBAL), together=False)
    assert begin_stage(state, stage(0), twice, OrderSpec(GLOBAL), together=True).streams[0].per_epoch == 104
    apart = Mixture([sets["a"], sets["a"]], where=["key < 'n'", "key >= 'n'"])
    assert len(begin_stage(state, stage(0), apart, OrderSpec(GLOBAL), together=False).streams) == 2


def test_a_data_set_drawn_in_one_order_with_others_cannot_be_drawn_alone_later(sets: dict[str, str]) -> None:
    both, alone = Mixture([sets["a"], sets["b"]]), Mixture([sets["a"]])
    state = begin_stage(TrainState(0, 0, 5, ""), stage(0), both, OrderSpec(GLOBAL), together=True)
    assert begin_stage(state, stage(1), both, OrderSpec(GLOBAL), together=True).streams[0].position == 0
    with pytest.raises(UserError, match=r"The run has drawn .*/a as a part of"):
        begin_stage(state, stage(1), alone, OrderSpec(GLOBAL), together=False)
    other = begin_stage(state, stage(1), Mixture([sets["c"]]), OrderSpec(GLOBAL), together=False)
    assert len(other.streams) == 2
