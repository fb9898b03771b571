"""Real jobs on a real Ray of three nodes: growing by a node, undisturbed, and through one fault after another.

A campaign, since it takes minutes.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest

from tests.cluster.ray_fixture import STEPS, cannot_run_here, ray_cluster, ray_jobs  # noqa: F401 - fixtures

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(cannot_run_here() is not None, reason=str(cannot_run_here())),
]
SWEEP_STEPS, SWEEP_GRACE = 250, 10
SWEEP = f"""
[sweep]
values = {{ "optim.lr" = [1e-3, 1e-9] }}
parallel = 1
grace_steps = {SWEEP_GRACE}
reduction = 2
"""
OTHER_LAYOUT = 1e-4  # relative, of losses at another number of ranks, at a learning rate of 1e-4


@pytest.fixture(scope="module")
def grown(cluster, jobs):
    """A job that begins with the head alone, continues on two nodes when another joins (Ray may take 40 s to react), is
    cancelled, and submitted again.
    """
    job = jobs("grown", "min_nodes = 1\n")
    seen = SimpleNamespace()
    job.submit()
    job.wait_for_progress(1)
    with job.paused(1):
        cluster.join("w1")
        job.wait_for_log(1, "nodes have come")
    seen.seconds_lost = job.seconds_lost(lambda: None)
    with ThreadPoolExecutor() as pool:
        with job.paused(2):
            cancelling = pool.submit(job.ask, "cancel")
            job.wait_for_log(2, "stopped")
        seen.cancelled = cancelling.result().stdout
    seen.status_after = job.ask("status").stdout
    job.submit()
    job.wait_for_exit()
    return job, seen


@pytest.fixture(scope="module")
def plain(grown, cluster, jobs):
    """The same run, undisturbed, on two nodes."""
    cluster.join("w2")
    job = jobs("plain")
    job.submit()
    job.wait_for_exit()
    return job


@pytest.fixture(scope="module")
def disturbed(plain, cluster, jobs):
    """The same run: a worker is killed, then the raylet of a node, then a node is cut off and comes back."""
    job = jobs("disturbed")
    job.submit()
    seen = SimpleNamespace(seconds_lost={})
    job.wait_for_progress(1)
    worker = job.ranks(1)[1].parent()
    seen.seconds_lost["worker killed"] = job.seconds_lost(worker.kill)

    node, rank = job.rank_beside_the_head(2)
    seen.seconds_lost["raylet killed"] = job.seconds_lost(rank.parent().parent().kill)
    cluster.join(node)

    node, seen.stale_rank = job.rank_beside_the_head(3)
    seen.seconds_lost["node cut off"] = job.seconds_lost(lambda: cluster.cut(node))
    seen.stale_rank_lived = seen.stale_rank.is_running()
    cluster.heal(node)
    job.wait_for_exit()
    return job, seen


@pytest.fixture(scope="module")
def swept(disturbed, cluster, jobs):
    """A sweep of two consecutive runs, killed in the first and submitted again; the second run learns nothing."""
    job = jobs("swept", SWEEP)
    words = ["job.nodes=1", f"train.steps={SWEEP_STEPS}"]
    job.submit(*words)
    latest = job.run / "trial-0000/checkpoints/latest"
    job.wait("a checkpoint", lambda: latest.exists() and latest.read_text() > "step_00000000")
    for process in psutil.process_iter(["cmdline"]):
        if f"{job.logs}/ray.json" in (process.info["cmdline"] or []):
            process.kill()
    job.wait("Ray to notice", lambda: "swept: failed" in job.ask("status").stdout)
    job.submit(*words)
    return job, job.ask("logs", "-f").stdout


def test_a_job_continues_after_each_fault_with_exactly_the_losses_of_an_undisturbed_one(disturbed, plain):
    job, seen = disturbed
    assert len(job.attempts()) == 4, seen.seconds_lost
    assert job.losses() == plain.losses()
    print("seconds lost:", seen.seconds_lost, "steps repeated:", job.repeated())


def test_a_stale_rank_that_comes_back_writes_nothing(disturbed):
    job, seen = disturbed
    assert seen.stale_rank_lived
    job.wait("the end of the stale rank", lambda: not seen.stale_rank.is_running(), seconds=60)
    own = json.loads((job.run / "attempts/0004.json").read_text())
    assert own["world"] == 2 and not (job.run / "attempts/0005.json").exists()


def test_a_job_grows_when_a_node_joins_stops_when_cancelled_and_repeats_no_step(grown, plain):
    job, seen = grown
    worlds = [json.loads(path.read_text())["world"] for path in sorted((job.run / "attempts").glob("*.json"))]
    assert worlds == [1, 2, 2] and [attempt["exit_code"] for attempt in job.attempts()] == [75, 75, 0]
    assert [line["step"] for line in job.lines()] == list(range(1, STEPS + 1))
    assert "Stopped by a signal" in (job.logs / "attempt-001/rank-00000.log").read_text()
    losses, others = job.losses(), plain.losses()
    for step in losses:
        assert losses[step][:5] == pytest.approx(others[step][:5], rel=OTHER_LAYOUT)
    print("seconds lost by growing:", seen.seconds_lost)


def test_a_cancelled_job_ends_with_everything_saved(grown):
    _, seen = grown
    assert re.fullmatch(r"grown has ended at step \d+\.\n", seen.cancelled)
    assert "grown: stopped, job" in seen.status_after and "attempt 2 was preempted" in seen.status_after


def test_a_killed_sweep_resumes_and_gives_up_the_bad_run(swept):
    job, followed = swept
    assert "resumes the sweep" in followed
    good, bad = json.loads((job.run / "sweep.json").read_text())
    assert (good["trial"], good["state"], good["step"]) == ("trial-0000", "done", SWEEP_STEPS), followed[-3000:]
    assert (bad["trial"], bad["state"]) == ("trial-0001", "given up") and SWEEP_GRACE <= bad["step"] < SWEEP_STEPS
    assert good["attempts"] == 2 and good["values"] == {"optim.lr": 1e-3} and good["loss"] < bad["loss"]
    table = (job.run / "sweep.csv").read_text().splitlines()
    assert table[0].split(",")[-1] == "optim.lr" and len(table) == 3
