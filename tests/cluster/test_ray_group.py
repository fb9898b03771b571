"""Attempts at a run on Ray, by the object that keeps them; what Ray calls from afar is called here."""

import asyncio
import json

import pytest

from cluster.job import Job
from cluster.ray import group as ray_group
from cluster.ray.group import Group, Verdict
from cluster.ray.spec import Spec


@pytest.fixture
def group(tmp_path):
    job = Job("small", "run.toml", "deepspeed.json", nodes=2)
    return Group(Spec(job, [], str(tmp_path), "python", str(tmp_path / "run"), str(tmp_path / "logs")))


async def start(group, workers="first", world=2):
    """Two ranks of a new attempt; its number."""
    places = await asyncio.gather(*(group.join(workers, rank, world, f"node{rank}", 100 + rank) for rank in (1, 0)))
    assert {(place.address, place.port) for place in places} == {("node0", 100)}
    return places[0].attempt


async def verdict(group, attempt, codes):
    for rank, code in codes.items():
        assert (await group.beat(attempt, None, 0)).verdict is None
        await group.ended(attempt, rank, code)
    return (await group.beat(attempt, None, 0)).verdict


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0}, Verdict(0, final=True)),
        ({0: 75, 1: 75}, Verdict(75, final=False)),
        ({0: 75, 1: 137}, Verdict(137, final=False)),
        ({0: 75, 1: 1}, Verdict(1, final=True)),
        ({0: 2, 1: 75}, Verdict(2, final=True)),
        ({0: 0, 1: 70}, Verdict(70, final=False)),
    ],
)
def test_what_the_exit_codes_of_an_attempt_mean(group, tmp_path, codes, expected):
    async def story():
        return await verdict(group, await start(group), codes)

    assert asyncio.run(story()) == expected
    assert [a["exit_code"] for a in json.loads((tmp_path / "logs/job.json").read_text())["attempts"]] == [
        expected.exit_code
    ]


def test_restarts_without_a_new_step_end_the_job(group, tmp_path):
    """Steps are what rank 0 finds on its disk, and what it has told of."""

    async def attempt(number, code, found, told):
        current = await start(group, f"workers {number}")
        await group.beat(current, {"step": told}, 0)
        await group.ended(current, 0, code, found)
        await group.ended(current, 1, code)
        return (await group.beat(current, None, 0)).verdict

    async def story():
        steps = [(100, 0), (100, 90), (100, 100), (0, 101), (100, 95), (100, 101), (101, 101)]
        return [await attempt(number, 75, *found) for number, found in enumerate(steps)]

    assert [verdict.final for verdict in asyncio.run(story())] == [False] * 6 + [True]
    assert (
        "3 restarts in a row have made no step beyond 101" in (tmp_path / "logs/attempt-007/launcher.log").read_text()
    )


def test_a_rank_that_does_not_end_after_another_has_failed_is_given_up(group, monkeypatch):
    monkeypatch.setattr(ray_group, "STRAGGLE", 0.05)

    async def story():
        attempt = await start(group)
        await group.ended(attempt, 1, 70)
        assert (await group.beat(attempt, None, 0)).verdict is None
        await asyncio.sleep(0.1)
        return (await group.beat(attempt, None, 0)).verdict

    assert asyncio.run(story()) == Verdict(70, final=False)


def test_a_drained_attempt_is_followed_by_another_and_a_stopped_one_is_not(group):
    async def story():
        first = await start(group)
        draining = asyncio.create_task(group.drain("nodes have come", 10))
        await asyncio.sleep(0)
        assert (await group.beat(first, None, 0)).stop
        assert await verdict(group, first, {0: 75, 1: 75}) == Verdict(75, final=False)
        await draining
        second = await start(group, "second")
        assert second == first + 1 and not (await group.beat(second, None, 0)).stop
        assert await group.stop("stopped")
        assert (await group.beat(second, None, 0)).stop
        assert await verdict(group, second, {0: 75, 1: 75}) == Verdict(75, final=True)
        assert not await group.stop("stopped")
        assert not (await group.join("third", 0, 1, "node0", 100)).wanted

    asyncio.run(story())


def test_a_worker_of_an_earlier_attempt_is_told_to_end_and_changes_nothing(group):
    async def story():
        first = await start(group)
        second = await start(group, "second")
        await group.ended(first, 0, 1)
        beat = await group.beat(first, None, 0)
        assert beat.stop and beat.verdict == Verdict(75, final=False)
        assert (await group.beat(second, None, 0)).verdict is None

    asyncio.run(story())


def test_metrics_of_rank_0_reach_all_workers_once(group):
    async def story():
        attempt = await start(group)
        await group.beat(attempt, {"step": 1}, 0)
        assert (await group.beat(attempt, {"step": 2}, 1)).reports == [{"step": 2}]
        assert (await group.beat(attempt, None, 0)).reports == [{"step": 1}, {"step": 2}]

    asyncio.run(story())
