"""The coordinator of the attempts of a job on Ray, its remote methods called directly."""

import asyncio
import json

import pytest

from cluster.job import Job
from cluster.ray import coordinator as ray_coordinator
from cluster.ray.coordinator import AttemptOutcome, Coordinator
from cluster.ray.spec import RayJobSpec

REQUEUE = 6


@pytest.fixture
def coordinator(tmp_path):
    job = Job("small", "run.toml", "deepspeed.json", nodes=2, requeue=REQUEUE)
    return Coordinator(RayJobSpec(job, [], str(tmp_path), "python", str(tmp_path / "run"), str(tmp_path / "logs")))


async def outcome(coordinator, attempt, codes):
    for rank, code in codes.items():
        assert (await coordinator.heartbeat(attempt)).outcome is None
        await coordinator.rank_ended(attempt, rank, code)
    return (await coordinator.heartbeat(attempt)).outcome


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0}, AttemptOutcome(0, final=True)),
        ({0: 75, 1: 75}, AttemptOutcome(75, final=False)),
        ({0: 75, 1: 137}, AttemptOutcome(137, final=False)),
        ({0: 75, 1: 1}, AttemptOutcome(1, final=True)),
        ({0: 2, 1: 75}, AttemptOutcome(2, final=True)),
        ({0: 0, 1: 70}, AttemptOutcome(70, final=False)),
    ],
)
def test_what_the_exit_codes_of_an_attempt_mean(coordinator, tmp_path, codes, expected):
    async def story():
        return await outcome(coordinator, await coordinator.begin(2), codes)

    assert asyncio.run(story()) == expected
    assert [a["exit_code"] for a in json.loads((tmp_path / "logs/job.json").read_text())["attempts"]] == [
        expected.exit_code
    ]


def test_the_coordinator_knows_where_the_ranks_of_the_last_attempt_were(coordinator):
    async def story():
        seen = []
        for nodes in (["a", "b"], ["a"], []):
            await coordinator.begin(len(nodes))
            seen.append(await coordinator.nodes_before())
            for rank, node in enumerate(nodes):
                await coordinator.rank_placed(rank, "10.0.0.1", node)
        return seen

    assert asyncio.run(story()) == [set(), {"a", "b"}, {"a"}]


def test_restarts_without_a_new_step_end_the_job(coordinator, tmp_path):
    """Steps are those that rank 0 finds on its disk and those it has reported."""

    async def attempt(code, found, told):
        current = await coordinator.begin(2)
        await coordinator.heartbeat(current, {"step": told})
        await coordinator.rank_ended(current, 0, code, found)
        await coordinator.rank_ended(current, 1, code)
        return (await coordinator.heartbeat(current)).outcome

    async def story():
        steps = [(100, 0), (100, 90), (100, 100), (0, 101), (100, 95), (100, 101), (101, 101)]
        return [await attempt(75, *found) for found in steps]

    assert [outcome.final for outcome in asyncio.run(story())] == [False] * 6 + [True]
    assert (
        "3 restarts in a row have made no step beyond 101" in (tmp_path / "logs/attempt-007/launcher.log").read_text()
    )


def test_a_command_is_not_expected_to_make_steps(tmp_path):
    job = Job("scores", command=("score", "shards"), requeue=REQUEUE)
    coordinator = Coordinator(RayJobSpec(job, [], str(tmp_path), "python", str(tmp_path), str(tmp_path / "logs")))

    async def story():
        return [await outcome(coordinator, await coordinator.begin(1), {0: 75}) for _ in range(REQUEUE + 1)]

    assert [one.final for one in asyncio.run(story())] == [False] * REQUEUE + [True]


def test_a_job_is_restarted_as_often_as_it_allows(coordinator, tmp_path):
    """An attempt whose workers are lost counts; one that ends because nodes have joined does not."""

    async def story():
        for attempt in range(1, REQUEUE + 1):
            assert await coordinator.begin(2) == attempt
            await coordinator.heartbeat(attempt, {"step": attempt})
        last = await coordinator.begin(2)
        draining = asyncio.create_task(coordinator.drain("nodes have come", 10))
        await asyncio.sleep(0)
        assert await outcome(coordinator, last, {0: 75, 1: 75}) == AttemptOutcome(75, final=False)
        await draining
        last = await coordinator.begin(2)
        await coordinator.heartbeat(last, {"step": last})
        assert await outcome(coordinator, last, {0: 75, 1: 139}) == AttemptOutcome(139, final=True)
        assert await coordinator.begin(2) is None
        return await coordinator.exit_code()

    assert asyncio.run(story()) == 139
    logs = sorted((tmp_path / "logs").glob("attempt-*/launcher.log"))
    assert f"job.requeue allows {REQUEUE} restarts" in logs[-1].read_text()


def test_whether_another_attempt_follows_after_ray_has_given_up(coordinator):
    async def story():
        first = await coordinator.begin(2)
        await coordinator.heartbeat(first, {"step": 1})
        verdicts = [await coordinator.verdict()]  # its workers were lost
        verdicts += [await coordinator.verdict() for _ in range(REQUEUE - 1)]  # Ray has begun none
        second = await coordinator.begin(2)
        await outcome(coordinator, second, {0: 75, 1: 1})
        return [*verdicts, await coordinator.verdict()]

    assert asyncio.run(story()) == [None] * REQUEUE + [1]


def test_a_job_ends_if_ray_starts_no_attempt(coordinator):
    async def story():
        return [await coordinator.verdict() for _ in range(REQUEUE + 1)]

    assert asyncio.run(story()) == [None] * REQUEUE + [75]


def test_the_outcome_of_an_attempt_is_known_despite_a_full_disk(coordinator, mount_disk):
    """If ranks fail because the disk is full, there is no room for the record of the job either."""
    disk = mount_disk("256k")
    coordinator._logs = disk / "logs"

    async def story():
        attempt = await coordinator.begin(2)
        with pytest.raises(OSError, match="No space left"), open(disk / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        return await outcome(coordinator, attempt, {0: 1, 1: 1})

    assert asyncio.run(story()) == AttemptOutcome(1, final=True)


def test_attempts_without_a_folder_count_towards_the_bound_on_restarts(coordinator, tmp_path):
    (tmp_path / "logs").write_text("in the place of the folder")

    async def story():
        for _ in range(REQUEUE + 1):
            with pytest.raises(OSError):
                await coordinator.begin(2)
        return await coordinator.begin(2), await coordinator.exit_code()

    assert asyncio.run(story()) == (None, 75)


def test_a_rank_that_does_not_end_after_another_failed_is_abandoned(coordinator, monkeypatch):
    monkeypatch.setattr(ray_coordinator, "STRAGGLE", 0.05)

    async def story():
        attempt = await coordinator.begin(2)
        await coordinator.rank_ended(attempt, 1, 70)
        assert (await coordinator.heartbeat(attempt)).outcome is None
        await asyncio.sleep(0.1)
        return (await coordinator.heartbeat(attempt)).outcome

    assert asyncio.run(story()) == AttemptOutcome(70, final=False)


def test_a_drained_attempt_is_followed_by_another_and_a_stopped_one_is_not(coordinator):
    async def story():
        first = await coordinator.begin(2)
        draining = asyncio.create_task(coordinator.drain("nodes have come", 10))
        await asyncio.sleep(0)
        assert (await coordinator.heartbeat(first)).stop
        assert await outcome(coordinator, first, {0: 75, 1: 75}) == AttemptOutcome(75, final=False)
        await draining
        second = await coordinator.begin(2)
        assert second == first + 1 and not (await coordinator.heartbeat(second)).stop
        assert await coordinator.stop("stopped")
        assert (await coordinator.heartbeat(second)).stop
        assert await outcome(coordinator, second, {0: 75, 1: 75}) == AttemptOutcome(75, final=True)
        assert not await coordinator.stop("stopped")
        assert await coordinator.begin(1) is None

    asyncio.run(story())


def test_a_worker_of_an_earlier_attempt_is_told_to_end_and_changes_nothing(coordinator):
    async def story():
        first = await coordinator.begin(2)
        second = await coordinator.begin(2)
        await coordinator.rank_ended(first, 0, 1)
        orders = await coordinator.heartbeat(first)
        assert orders.stop and orders.outcome == AttemptOutcome(75, final=False)
        assert (await coordinator.heartbeat(second)).outcome is None

    asyncio.run(story())


def test_the_newest_metrics_are_kept_for_the_sweep(coordinator):
    async def story():
        assert await coordinator.metrics() is None
        attempt = await coordinator.begin(2)
        await coordinator.heartbeat(attempt, {"step": 1})
        await coordinator.heartbeat(attempt, {"step": 2})
        await coordinator.heartbeat(attempt)
        assert await coordinator.metrics() == {"step": 2}

    asyncio.run(story())
