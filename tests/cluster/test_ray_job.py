"""What the Ray back-end prints and refuses without a cluster."""

import json
import os
import re
import shlex
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray

from cluster.job import load_job
from cluster.ray import driver as ray_driver
from cluster.ray.backend import describe_ends, earlier_attempts, entrypoint, refuse_another_sweep, runtime_env
from cluster.ray.client import connect
from cluster.ray.spec import FILE, TUNE, RayJobSpec
from cluster.ray.sweep import _write
from cluster.ray.worker import _start
from cluster.record import JobRecord, newest_measures, newest_step
from data_tools.engines.ray import connected
from mvlm.errors import ExitCode, UserError
from mvlm.runtime.launch import HELD
from tests.cluster.conftest import rendered
from tests.conftest import free_port


@contextmanager
def serving(answer):
    """The address of an HTTP server that gives this answer to each GET."""

    class Server(BaseHTTPRequestHandler):
        do_GET = answer

        def log_message(self, *said):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


NOWHERE = "job.ray_address=http://127.0.0.1:1"


def test_render_shows_everything_ray_is_given(job, cluster):
    words = ["job.processes_per_node=1", "job.nodes=4", "job.min_nodes=2", "job.cpus_per_process=3", 'job.time="90"']
    out = rendered(job, "ray", NOWHERE, *words, "job.environment.A=b c", "optim.lr=1e-4")
    assert "workers: 2 to 4, each with 3 CPU, packed by node" in out
    assert "time: 90, the ranks save 120 s before its end" in out
    assert "rank environment: A=b c" in out and "rank environment: DS_ACCELERATOR=cpu" in out
    assert re.search(r"each rank, in .*: \S+ -m mvlm train \S+/logs/run.toml --deepspeed_config .* optim.lr=1e-4", out)


def test_render_shows_a_sweep(job, cluster):
    job.write_text(
        job.read_text() + '[sweep]\nvalues = { "optim.lr" = [1e-4, 3e-4], "run.seed" = [1, 2] }\nsamples = 3\n'
    )
    out = rendered(job, "ray", NOWHERE)
    assert "sweep: 3 of 4 runs, for the min of loss" in out and "sweep: run.seed = [1, 2]" in out


def test_a_sweep_with_other_values_does_not_reuse_the_runs_of_the_first(job, tmp_path):
    """Tune knows runs by number, and finished ones would be listed with the values of the second sweep."""
    text = job.read_text() + '[sweep]\nvalues = {{ "optim.lr" = [1e-4, {}] }}\n'
    job.write_text(text.format("3e-4"))
    first = load_job(job)
    RayJobSpec.of(first, []).save(tmp_path / FILE)
    job.write_text(text.format("5e-4"))
    refuse_another_sweep(load_job(job), tmp_path)  # none of the first has begun
    (tmp_path / TUNE).mkdir()
    refuse_another_sweep(first, tmp_path)
    with pytest.raises(UserError, match=r"small has begun as a sweep of other values, .* give it another job.name and"):
        refuse_another_sweep(load_job(job), tmp_path)


@pytest.mark.parametrize(
    ("begun", "now", "key"),
    [
        ("parallel = 1", "parallel = 4", "parallel = 1"),
        ("", "grace_steps = 10", "grace_steps = 0"),
        ("grace_steps = 10", 'grace_steps = 10\nmetric = "itc"', "metric = 'loss'"),
        ("", 'metric = "itc"', None),  # the table's alone, where no run is given up
    ],
)
def test_a_sweep_that_has_begun_refuses_settings_it_would_ignore(job, tmp_path, begun, now, key):
    """Tune would silently restore those it began with."""
    text = job.read_text() + '[sweep]\nvalues = { "optim.lr" = [1e-4, 3e-4] }\n'
    job.write_text(text + begun)
    RayJobSpec.of(load_job(job), []).save(tmp_path / FILE)
    (tmp_path / TUNE).mkdir()
    job.write_text(text + now)
    refused = pytest.raises(
        UserError, match=f"small has begun with sweep.{key}, with which it would continue: put that back"
    )
    with refused if key else nullcontext():
        refuse_another_sweep(load_job(job), tmp_path)


def test_cancelling_a_sweep_says_how_far_each_of_its_runs_has_come(tmp_path):
    """The run folder of the sweep itself holds no steps, which must not read as if none had been made."""
    logs = tmp_path / "logs"
    JobRecord("sweep", "ray", str(tmp_path), "").save(logs)
    assert describe_ends(logs) == "sweep has ended before its first step."
    for number, steps in ((0, [1, 2]), (1, [])):
        run = tmp_path / f"trial-000{number}"
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in steps))
        JobRecord(f"sweep-{run.name}", "ray", str(run), "").save(logs / run.name)
    assert describe_ends(logs).splitlines() == [
        "sweep-trial-0000 has ended at step 2.",
        "sweep-trial-0001 has ended before its first step.",
    ]


def test_the_results_of_an_evaluation_are_reported_with_the_steps_after_it(tmp_path):
    """Otherwise a sweep by "eval/mean_recall" ends at its first report without one."""
    lines = [{"step": 10, "loss": 2.0}, {"step": 10, "eval/mean_recall": 0.25}, {"step": 20, "loss": 1.5}]
    assert newest_measures(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 3')
    assert newest_measures(tmp_path) == {"step": 20, "loss": 1.5, "eval/mean_recall": 0.25}
    assert newest_step(tmp_path) == 20


def test_nothing_of_the_job_file_reaches_a_shell_unquoted(job):
    logs = "; touch $(id) 'x'"
    given = RayJobSpec.of(load_job(job, [f"job.logs={logs}"]), ["run.dir=a b"])
    words = shlex.split(entrypoint(given, Path(given.logs) / FILE))
    assert words[1:3] == ["-m", "cluster.ray.driver"] and len(words) == 4 and logs in words[3]


def test_a_spec_survives_the_disk(job, tmp_path):
    job.write_text(job.read_text() + '[sweep]\nvalues = { "optim.lr" = [1e-4, 3e-4] }\n')
    given = RayJobSpec.of(load_job(job), ["train.steps=3"])
    given.save(tmp_path / "ray.json")
    assert RayJobSpec.load(tmp_path / "ray.json") == given


def test_only_its_owner_can_read_the_environment_of_a_job(job, tmp_path):
    (tmp_path / "ray.json").write_text("left by an earlier version")
    RayJobSpec.of(load_job(job, ["job.environment.WANDB_API_KEY=secret"]), []).save(tmp_path / "ray.json")
    assert "secret" in (tmp_path / "ray.json").read_text()
    assert (tmp_path / "ray.json").stat().st_mode & 0o777 == 0o600


def test_a_secret_missing_on_a_node_ends_its_rank_with_a_sentence(job, tmp_path, monkeypatch):
    monkeypatch.delenv("ABSENT", raising=False)
    spec = RayJobSpec.of(load_job(job, ["job.environment.WANDB_API_KEY=env:ABSENT"]), [])
    log = tmp_path / "rank-00000.log"
    assert _start(spec, {HELD: "1"}, log).wait() == ExitCode.MISTAKE
    said = log.read_text()
    assert said.startswith("cluster: environment.WANDB_API_KEY is 'env:ABSENT', and ABSENT is not set")
    assert said.endswith(" is `ray start`.\n") and said.count("\n") == 1


def test_a_ray_that_does_not_come_up_in_time_is_reported_in_one_sentence(job, tmp_path, monkeypatch, capsys):
    def late(*args, **settings):
        raise Exception("The current node timed out during startup. This could happen because\nof much.")

    RayJobSpec.of(load_job(job), []).save(tmp_path / "ray.json")
    monkeypatch.setattr(ray, "init", late)
    measures = replace(RayJobSpec.of(load_job(job), []), words=["preflight"])
    measures.save(tmp_path / "preflight.json")
    for file, code in (("ray.json", 75), ("preflight.json", 1)):
        assert ray_driver.main([str(tmp_path / file)]) == code
        said = capsys.readouterr().out
        assert said.startswith("cluster: Ray cannot be joined on this node (The current node timed out")
        assert said.count("\n") == 1
    with pytest.raises(UserError, match=r"No Ray at this machine .*timed out.*: try again"), connected(None, 1):
        pass


def test_an_image_is_handed_to_ray(job):
    given = RayJobSpec.of(load_job(job, ["job.container=mvlm:1"]), [])
    assert runtime_env(given)["image_uri"] == "mvlm:1" and entrypoint(given, Path("ray.json")).startswith(
        "python -m cluster.ray.driver"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["job.partition=main"], "job.partition is 'main', which the ray back-end cannot honour: remove it."),
        (["job.launcher=torchrun"], "job.launcher is 'torchrun', which the ray back-end cannot honour"),
        (["job.warning_seconds=60"], "job.warning_seconds is 60, which the ray back-end cannot honour"),
        (['job.time="2"'], "job.time is '2', and the last 120 s of it, job.warning_seconds, are for saving"),
        (["job.run=nowhere.toml"], "job.run names nowhere.toml, which is not a file here"),
    ],
)
def test_settings_that_ray_cannot_honour_are_refused_by_name(job, cluster, words, sentence):
    code, _, err = cluster("submit", job, "--on", "ray", NOWHERE, *words)
    assert code == 1 and sentence in err and err.count("\n") == 1


def test_an_absent_cluster_is_reported_in_one_sentence(job, cluster, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    code, _, err = cluster("submit", job, "--on", "ray")
    assert code == 1 and "There is no address of a Ray cluster" in err and err.count("\n") == 1
    code, _, err = cluster("submit", job, "--on", "ray", f"job.ray_address=http://127.0.0.1:{free_port()}")
    assert code == 1 and "No job server of Ray answers" in err and err.count("\n") == 1
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_the_address_of_another_ray_server_is_refused_in_one_sentence(job, cluster, address):
    """Ray's client would look for its store there for most of a minute, or take the job but never report its state."""
    code, _, err = cluster("submit", job, "--on", "ray", f"job.ray_address={address}")
    assert code == 1 and err.startswith(f"cluster: {address} is not the address of a Ray cluster's dashboard"), err
    assert err.count("\n") == 1


def test_the_address_in_a_job_file_overrides_that_in_the_environment(monkeypatch):
    asked = []

    def refuse(request):
        asked.append(request.path)
        request.send_error(503)

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", elsewhere := f"http://127.0.0.1:{free_port()}")
    with serving(refuse) as here, pytest.raises(UserError, match=f"answers at {here}"):
        connect(here)
    assert asked and os.environ["RAY_API_SERVER_ADDRESS"] == elsewhere


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_requires_a_token_is_reported_in_one_sentence(job, cluster, monkeypatch, status):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with serving(lambda request: request.send_error(status)) as address:
        code, _, err = cluster("submit", job, "--on", "ray", f"job.ray_address={address}")
    assert code == 1 and "RAY_AUTH_TOKEN_PATH if the cluster requires a token" in err and err.count("\n") == 1


def test_submitting_again_after_the_cluster_is_gone_says_what_to_do(tmp_path):
    JobRecord("small", "ray", str(tmp_path / "run"), f"http://127.0.0.1:{free_port()}", job_id="small-1").save(tmp_path)
    with pytest.raises(UserError, match=f"small was last submitted to .* move {tmp_path}/job.json away"):
        earlier_attempts(tmp_path)


@pytest.mark.parametrize("status", [404, 500])
def test_a_head_that_fails_to_answer_is_not_taken_for_one_without_the_job(tmp_path, monkeypatch, status):
    def answer(request):
        if "version" not in request.path:
            request.send_error(status)
            return
        request.send_response(200)
        request.end_headers()
        request.wfile.write(json.dumps({"version": "4", "ray_version": ray.__version__}).encode())

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with serving(answer) as address:
        JobRecord("small", "ray", str(tmp_path / "run"), address, job_id="small-1").save(tmp_path)
        if status == 404:
            assert earlier_attempts(tmp_path) == []
        else:
            with pytest.raises(UserError, match="status code 500"):
                earlier_attempts(tmp_path)


def test_a_sweep_over_the_run_folder_is_refused(job, cluster):
    job.write_text(job.read_text() + '[sweep]\nvalues = { "run.dir" = ["a", "b"] }\n')
    code, _, err = cluster("submit", job, "--on", "ray", NOWHERE)
    assert code == 1 and "run.dir" in err


def test_the_table_of_a_sweep_stays_intact_if_there_is_no_room_for_the_next(mount_disk):
    """A resumed sweep replaces it."""
    folder = mount_disk("64k")
    rows = [{"trial": "trial-0000", "state": "done", "step": 3, "loss": 1.0, "values": {"optim.lr": 1e-3}}]
    _write(folder, rows)
    with pytest.raises(OSError):
        _write(folder, rows * 10_000)
    assert json.loads((folder / "sweep.json").read_text()) == rows
    assert len((folder / "sweep.csv").read_text().splitlines()) == 2
