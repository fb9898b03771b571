"""A real job on a real Ray of two nodes, the reports about it, and a pipeline that loses one of the nodes.

Other faults are in test_ray_faults.py.
"""

import json
import re
import time
from types import SimpleNamespace

import psutil
import pytest

from cluster.pipeline.proof import read_proof
from tests.cluster.pipeline_fixture import IMAGES, SHARDS, write_images
from tests.cluster.ray_fixture import cannot_run_here, ray_cluster, ray_jobs  # noqa: F401 - fixtures
from tests.data_tools.made import run, tree, write_folder

STEPS = 40
PIPELINE = (
    SHARDS
    + """{held}
[[step]]
name = "last"
kind = "command"
command = ["sh", "-c", 'cat "$@" >{folder}/last', "-", "{folder}/one", "{folder}/other"]
writes = ["{folder}/last"]
"""
)
HELD = """
[[step]]
name = "{name}"
kind = "command"
command = ["sh", "-c", 'uname -n >>"$0-is-on"; until test -e {folder}/go; do sleep 0.2; done; ls "$1" >"$0"',
  "{folder}/{name}", "{folder}/shards"]
writes = ["{folder}/{name}"]
cpus = 2
"""
pytestmark = pytest.mark.skipif(cannot_run_here() is not None, reason=str(cannot_run_here()))


def gauges(cluster):
    """Those of the job, by name."""
    return dict(re.findall(r'^ray_mvlm_(\w+)\{[^}]*job="plain"[^}]*\} (\S+)$', cluster.metrics(), re.MULTILINE))


@pytest.fixture(scope="module")
def two_nodes(cluster):
    cluster.join("w1")
    return cluster


@pytest.fixture(scope="module")
def plain(two_nodes, cluster, jobs):
    """An undisturbed job on two nodes, and the reports about it while its ranks are suspended."""
    job, seen = jobs("plain"), SimpleNamespace(metrics={})
    seen.submitted = job.submit(f"train.steps={STEPS}")
    job.wait_for_progress(1)
    with job.paused(1):
        job.wait("a scrape of its metrics", lambda: len(seen.metrics) == 3 or seen.metrics.update(gauges(cluster)))
        seen.status, seen.rival = job.ask("status").stdout, job.ask("submit", "--on", "ray")
        seen.dashboard = json.loads(cluster.fetch(f"http://{cluster.address('head')}:8265/api/train/v2/runs/v1"))
    seen.followed = job.ask("logs", "-f").stdout
    return job, seen


def test_an_undisturbed_job_takes_one_attempt(plain):
    job, seen = plain
    assert [attempt["exit_code"] for attempt in job.attempts()] == [0]
    assert [line["step"] for line in job.lines()] == list(range(1, STEPS + 1))
    assert f"0: step {STEPS} " in seen.followed and "attempt 1 is done" in seen.followed


def test_checkpoints_are_reported_to_ray_train_and_copied_nowhere(plain):
    job, _ = plain
    [reports] = (job.logs / "ray").iterdir()
    last = f"step_{STEPS:08d}"
    pointer = reports / f"001-{last}" / "checkpoint.json"
    assert json.loads(pointer.read_text()) == {"path": str(job.run / "checkpoints" / last)}
    of_ray = {path for path in reports.rglob("*") if path.is_file() and path.name != pointer.name}
    assert all(path.parent == reports for path in of_ray), "the weights"
    assert any(pointer.parent.name in path.read_text() for path in of_ray), "Ray knows of it"


def test_each_rank_logs_to_its_own_file(plain):
    job, _ = plain
    assert [path.name for path in sorted((job.logs / "attempt-001").iterdir())] == [
        *("launcher.log", "rank-00000.log", "rank-00001.log")
    ]


def test_a_running_job_has_a_status_and_refuses_a_second_submission(plain):
    _, seen = plain
    assert re.fullmatch(r"submitted plain as plain-\w{8} to http.*\n", seen.submitted.stdout), seen.submitted
    assert re.search(r"plain: running, job plain-\w+ at .*\n  attempt 1 runs .*\n  step \d+  loss \d", seen.status)
    assert seen.rival.returncode == 1 and "plain is running as plain-" in seen.rival.stderr


def test_ray_shows_the_run_and_its_metrics(plain):
    _, seen = plain
    assert [run["status"] for run in seen.dashboard["train_runs"]] == ["RUNNING"]
    shown = seen.metrics
    assert float(shown["step"]) >= 1 and 5 < float(shown["loss"]) < 12 and float(shown["pairs_per_s"]) > 0


@pytest.mark.campaign
def test_a_preflight_measures_the_nodes_ray_assigns(plain, cluster, tmp_path):
    words = ["preflight", plain[0].file, "--on", "ray", f"run.dir={tmp_path / 'run'}", f"job.logs={tmp_path / 'logs'}"]
    done = cluster.on_head("cluster", *words)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("preflight: all is well"), done.stdout + done.stderr
    assert "ranks: 2  nodes: 2  rounds of pairs: 1" in done.stdout and "GLOO_SOCKET_IFNAME=eth0" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines() if " cpu " in line} == {"head", "w1"}
    assert (tmp_path / "logs/preflight.json").stat().st_mode & 0o777 == 0o600


def test_shards_made_on_the_cluster_equal_those_made_locally(plain, cluster, tmp_path):
    write_folder(tmp_path / "in", 40)
    words = ["shard", "folder", tmp_path / "in", "--shard-mb", "0.02", "--out"]
    made = cluster.on_head("data_tools", *words, tmp_path / "ray", "--engine", "ray", "--workers", "2")
    assert made.returncode == 0, made.stderr
    run(*words, tmp_path / "local", "--workers", "1")
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.campaign
def test_a_job_continues_when_the_actors_beside_its_driver_are_killed(two_nodes, cluster, jobs):
    job = jobs("bereft")
    job.submit("train.steps=60")
    for attempt, actor in enumerate(("ray::Coordinator", "ray::TrainController"), 1):
        job.wait_for_progress(attempt)
        [victim] = [one for one in psutil.process_iter() if " ".join(one.cmdline()).startswith(actor)]
        assert cluster.node_of(victim) == "head"
        victim.kill()
    job.wait_for_exit()
    assert [attempt["exit_code"] for attempt in job.attempts()] == [None, None, 0]
    assert list(job.losses()) == list(range(1, 61))


def test_a_pipeline_continues_without_a_lost_node(two_nodes, cluster, tmp_path):
    """Last in this file, since the node does not come back. Steps that take a whole node each are held meanwhile."""
    write_images(tmp_path / "in")
    held = "".join(HELD.format(folder=tmp_path, name=name) for name in ("one", "other"))
    (tmp_path / "small.toml").write_text(PIPELINE.format(folder=tmp_path, held=held))
    submitted = cluster.on_head("cluster", "submit", tmp_path / "small.toml", "--on", "ray")
    assert submitted.returncode == 0, submitted.stderr

    def nodes():
        return {path.name.split("-")[0]: path.read_text().split() for path in tmp_path.glob("*-is-on")}

    def wait(reached):
        deadline = time.monotonic() + 600
        while not reached():
            logs = {path.name: path.read_text()[-500:] for path in (tmp_path / "logs").rglob("*.log")}
            assert time.monotonic() < deadline, (nodes(), logs)
            time.sleep(0.5)

    wait(lambda: sorted(nodes().values()) == [["head"], ["w1"]])
    [lost] = [name for name, where in nodes().items() if where == ["w1"]]
    cluster.lose("w1")
    (tmp_path / "go").touch()
    wait(lambda: (proof := read_proof(str(tmp_path / "last.step.json"))) and proof.done)
    assert nodes()[lost] == ["w1", "head"]
    assert (tmp_path / "last").read_text().count("manifest.json") == 2
    assert json.loads((tmp_path / "shards/manifest.json").read_text())["rows"] == IMAGES
    status = json.loads(cluster.on_head("cluster", "status", "--json", tmp_path / "small.toml").stdout)["steps"]
    assert {step["name"]: (step["state"], step["attempts"]) for step in status} == {
        step: ("done", 2 if step == lost else 1) for step in ("shards", "one", "other", "last")
    }
