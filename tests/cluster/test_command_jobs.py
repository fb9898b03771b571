"""Jobs that evaluate, index or score instead of training: how their ranks are started on each back-end."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.__main__ import BACKENDS, main
from cluster.attempt import JobAttempt, describe_attempt
from cluster.check import check_run
from cluster.job import load_job
from cluster.pipeline import commands, slurm
from cluster.pipeline.file import load_pipeline
from cluster.pipeline.graph import Graph
from cluster.pipeline.proof import is_proven
from cluster.pipeline.submission import draft, prepare
from cluster.pipeline.words import as_job, job_file
from cluster.record import JobRecord
from cluster.status import JobStatus, as_text, describe_end
from mvlm.errors import UserError

WORDS = ["evaluate", "retrieval", "--checkpoint", "runs/a b", "--data", "shards", "--json", "out.json"]
JOB = f"""[job]
name = "eval"
command = {WORDS}
nodes = 2
gpus_per_node = 4
"""
SAID = "mvlm evaluate retrieval --checkpoint 'runs/a b' --data shards --json out.json\n"
PIPELINE = """
[pipeline]
name = "p"

[[step]]
name = "measured"
kind = "evaluate"
command = ["retrieval", "--checkpoint", "run", "--data", "shards"]
reads = ["run"]
writes = ["out.json"]
processes = 2
cpus = 4
retries = 1
time = "0:10:00"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").touch()
    (tmp_path / "p.toml").write_text(PIPELINE)
    return Graph(load_pipeline("p.toml"))


@pytest.mark.parametrize(
    ("backend", "overrides", "said"),
    [
        ("local", ["job.nodes=1"], r"deepspeed --num_accelerators 4 .* --module "),
        ("slurm", [], r"#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n#SBATCH --gpus-per-node=4\n"),
        ("ray", ['job.ray_address="http://127.0.0.1:1"'], r"workers: 8, each with 1 CPU, 1 GPU, packed by node\n"),
    ],
)
def test_the_ranks_of_an_evaluation_start_like_those_of_training(
    job: Path, backend: str, overrides: list[str], said: str
) -> None:
    text = BACKENDS[backend].render(load_job(job, overrides), []) + "\n"
    assert re.search(said, text) and SAID in text and "deepspeed_config" not in text


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_all_tasks_of_a_node_see_the_gpus_of_each(job: Path, launcher: str) -> None:
    asked = ['job.gpu_request="gpus-per-task"', f'job.launcher="{launcher}"']
    text = BACKENDS["slurm"].render(load_job(job, asked), [])
    assert "#SBATCH --gpus-per-task=1\n" in text and "gpus-per-node" not in text
    step = text[text.index("launch() {") : text.index("stop() {")]
    assert "--gpu-bind=none" in step and ("--gpus-per-task=4" in step) == (launcher == "torchrun")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("job.command=[]", "job.run is missing"),
        ('job.command=["train", "x"]', "begins with 'train'"),
        ('job.run="mvlm/configs/tiny.toml"', "job.command and job.run are both given"),
        ('job.deepspeed="ds_configs/cpu.json"', "job.command and job.deepspeed are both given"),
        ("train.steps=3", "train.steps=3 is a setting of a run"),
        (
            "job.environment.KEY=env:MVLM_NOT_SET",
            "job.environment.KEY is 'env:MVLM_NOT_SET', and MVLM_NOT_SET is not",
        ),
    ],
)
def test_a_mistake_is_a_sentence(job: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(job), "--on", "local", "job.nodes=1", override]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_sweep_and_a_preflight_need_a_run(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other in (job, "cluster/shards.toml", "cluster/scores.toml", "cluster/pipelines/4m.toml"):
        assert main(["preflight", str(other), "--on", "slurm"]) == 1
        assert f"{other} has no run for which nodes could be measured" in capsys.readouterr().err
    job.write_text(JOB + '[sweep]\nvalues = { "optim.lr" = [1, 2] }\n')
    with pytest.raises(UserError, match=r"\[sweep\]"):
        load_job(job)


def test_the_status_of_a_job_without_steps_does_not_say_that_it_made_none(tmp_path: Path) -> None:
    record = JobRecord("eval", "local", str(tmp_path), "here", is_command=True)
    status = JobStatus(record, "not running, the last attempt is done", False, False, [JobAttempt(1, 0.0, 9.0, 0)])
    assert as_text(status).splitlines() == [f"eval: {status.words}", "  attempt 1 is done (0 min 9 s)"]
    assert describe_end(record) == "has ended."


def test_an_attempt_whose_node_has_a_clock_that_is_ahead_has_not_lasted_less_than_nothing() -> None:
    assert describe_attempt(JobAttempt(1, time.time() + 30), running=True) == "attempt 1 runs (0 min 0 s)"


@pytest.mark.campaign
def test_unknown_words_of_the_command_are_refused(job: Path) -> None:
    job.write_text(JOB.replace("--json", "--jason"))
    with pytest.raises(UserError, match="unrecognized arguments: --jason"):
        check_run(load_job(job), [], here=True)


def test_a_step_with_ranks_is_a_job_on_each_back_end(graph: Graph) -> None:
    step = graph.pipeline.steps["measured"]
    assert step.is_job
    shown = {name: backend.render(graph, draft(graph, [], name)) for name, backend in commands.BACKENDS.items()}
    words = "evaluate retrieval --checkpoint run --data shards --json out.json"
    assert f"python -m mvlm {words}\n" in shown["slurm"]
    assert "#SBATCH --ntasks-per-node=2\n#SBATCH --cpus-per-task=2\n" in shown["slurm"]
    assert "#SBATCH --signal=B:USR1@120\n" in shown["slurm"] and "#SBATCH --requeue\n" in shown["slurm"]
    for name in ("local", "ray"):
        assert f"command = {words.split()}".replace("'", '"') in shown[name]
        assert "processes_per_node = 2\n" in shown[name] and "requeue = 1\n" in shown[name]


def test_a_step_is_settled_from_the_exit_code_of_its_slurm_job(graph: Graph, tmp_path: Path) -> None:
    before, attempt = (Path(graph.pipeline.logs, "measured/job", name) for name in ("attempt-001", "attempt-002"))
    before.mkdir(parents=True)
    (before / "started").write_text(f"{time.time():.0f}")
    (before / "exit_code").write_text("0")
    new = draft(graph, [], "slurm")
    prepare(graph, new)
    key = new.queued["measured"].key
    (tmp_path / "out.json").write_text("{}")
    slurm.settle_ended(graph, new)
    assert not is_proven(graph, "measured", key), "an earlier submission's attempt"
    attempt.mkdir()
    (attempt / "started").write_text("1")  # the node's clock is behind
    (attempt / "exit_code").write_text("1")
    slurm.settle_ended(graph, new)
    assert not is_proven(graph, "measured", key)
    (attempt / "exit_code").write_text("0")
    slurm.settle_ended(graph, new)
    assert is_proven(graph, "measured", key)


@pytest.mark.parametrize("time", ["0:31", "1", "0:10:00"])
def test_the_job_of_a_step_gets_a_time_that_a_job_file_allows(graph: Graph, tmp_path: Path, time: str) -> None:
    step = replace(graph.pipeline.steps["measured"], time=time)
    (tmp_path / "job.toml").write_text(job_file(as_job(graph.pipeline, step, "local")))
    assert load_job(tmp_path / "job.toml").time == time
