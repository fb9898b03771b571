"""The job file and its overrides, and the command line they become."""

import os
import shlex
import subprocess
import sys

import pytest

from cluster.environment import LAUNCHER_VARIABLES
from cluster.job import load_job, parse_time, run_folder
from mvlm.config.schema import Run
from tests.cluster.conftest import rendered
from tests.conftest import ROOT

MISTAKES = {
    "job.node=2": "unknown key job.node; did you mean job.nodes?",
    "job.zzz=2": "known are account, command, container,",
    "job.nodes=2": "set job.nodes=1",
    "job.nodes=0": "must be 1 or more",
    "job.nodes=two": "job.nodes is 'two': give a whole number",
    "job.requeue=true": "job.requeue is True",
    "job.requeue=-1": "must be 0 or more",
    "job.name=../up": "job.name is '../up'",
    "job.name=": "job.name is missing",
    "job.gpus_per_node=2": "are both given",
    "job.time=2": "and the last 120 s of it, job.warning_seconds, are for saving: give more time",
    "job.time=0:30": "the last 120 s of it, job.warning_seconds, are for saving: give more time",
    "job.venv=nowhere": "job.venv names nowhere, where there is no bin/python to run",
    "job.partition=gpu": "job.partition is 'gpu', which the local back-end cannot honour",
    "job.run=nowhere.toml": "job.run names nowhere.toml",
    "job.deepspeed=nowhere.json": "job.deepspeed names nowhere.json",
    "job.environment.A-B=1": "not the name of an environment variable",
    "job.environment={A=1}": "job.environment.A is 1: give a string",
    "job.launcher=mpirun": "choose one of 'srun', 'torchrun', 'deepspeed', 'pdsh'",
    "job.time=a day": "job.time is 'a day': give minutes, H:M:S or D-H:M:S",
    "job.modules=[1]": "job.modules is 1: give a string",
    'job.qos="two\\nlines"': "must be one plain line",
    "job.min_nodes=2": "must not be above job.nodes, 1",
    "job.warning_seconds=1": "must be 30 or more",
    "job.a.b=1": "unknown key job.a;",
    "job.name.b=1": "treats 'name' as a table, and it is not one",
    "job.sweep={samples=1}": "[sweep] is a table of its own",
}


@pytest.mark.parametrize("command", ["submit", "render", "preflight"])
@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_sentence_and_starts_nothing(cluster, job, command, override):
    code, out, err = cluster(command, job, "--on", "local", override)
    assert (code, out) == (1, "")
    assert MISTAKES[override] in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (job.parent / "logs").exists()


@pytest.mark.parametrize("backend", ["slurm", "ray"])
@pytest.mark.parametrize("command", ["submit", "render", "preflight"])
@pytest.mark.parametrize("override", ["job.time=2", "job.venv=nowhere", "job.venv=/etc/nowhere"])
def test_every_backend_refuses_another_python_and_a_time_that_is_all_warning(cluster, job, backend, command, override):
    code, out, err = cluster(command, job, "--on", backend, override, "job.ray_address=http://127.0.0.1:1")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert MISTAKES["job.time=2"] in err or "where there is no bin/python to run" in err
    assert not (job.parent / "logs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[job]\nname = ", "not valid TOML"),
        ("name = 'x'", "unknown table [name]"),
        ("", "has no table [job]"),
        ("[job]\nname = 'x'\nrun = 'r'", "job.deepspeed is missing"),
        ("[job]\n[run]", "unknown table [run]"),
        (None, "No job file at"),
    ],
)
def test_a_bad_file_is_named(cluster, tmp_path, text, message):
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_text(text)
    code, _, err = cluster("submit", path, "--on", "local")
    assert code == 1 and message in err and str(path) in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["submit", "JOB"], ["submit", "JOB", "--on", "moon"], ["submit", "JOB", "--on", "local", "stray"], []]
)
def test_wrong_usage_exits_with_2(cluster, job, words):
    assert cluster(*[job if word == "JOB" else word for word in words])[0] == 2


def test_status_logs_and_cancel_need_a_submission(cluster, job):
    for command in ("status", "logs", "cancel"):
        code, _, err = cluster(command, job)
        assert code == 1 and "No job has been submitted" in err


def test_render_prints_what_a_shell_would_run(cluster, job, monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "5")
    hostile = "data.train=$(touch pwned); a b"
    overrides = ["job.environment.GREETING=two words", "job.environment.COUNT=2", "train.steps=3", hostile]
    words = shlex.split(rendered(job, "local", *overrides))
    port = words[words.index("--master_port") + 1]
    launcher = next(word for word in words if word.endswith("/deepspeed"))
    assert 1024 <= int(port) < 65536
    assert words == [
        *["env", "-u", "RANK", "DS_ACCELERATOR=cpu", "GREETING=two words", "COUNT=2"],
        *[launcher, "--num_accelerators", "2", "--master_port", port],
        *["--enable_each_rank_log", str(job.parent / "logs" / "attempt-001"), "--module", "mvlm"],
        *["train", str(job.parent / "logs/run.toml"), "--deepspeed_config", str(job.parent / "logs/deepspeed.json")],
        *["train.steps=3", hostile],
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:02:03", 3723), ("1-2", 93600), ("1-2:3", 93780), ("1-2:3:4", 93784), ("x", None)],
)
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep.values is missing"),
        ("value.a = [1]", "unknown key sweep.value; did you mean sweep.values?"),
        ('values."optim.lr" = 1e-4', "sweep.values.optim.lr must be like"),
        ('values."$(rm)" = [1]', "must be like"),
        ('values."optim.lr" = [1]\nreduction = 1', "sweep.reduction is 1: it must be 2 or more"),
        ('values."optim.lr" = [1]', "[sweep] is given, which the local back-end cannot honour"),
    ],
)
def test_a_bad_sweep_is_named(cluster, job, text, message):
    job.write_text(job.read_text() + f"[sweep]\n{text}\n")
    code, _, err = cluster("submit", job, "--on", "local")
    assert code == 1 and message in err and err.count("\n") == 1


def test_gpu_jobs_leave_deepspeed_its_choice_of_accelerator(cluster, job):
    job.write_text(job.read_text().replace("processes_per_node = 2", "gpus_per_node = 8"))
    out = rendered(job, "local")
    assert "--num_accelerators 8 " in out and "DS_ACCELERATOR" not in out


def test_the_run_folder_is_the_one_training_uses(job, tmp_path):
    run = tmp_path / "run.toml"
    run.write_text("[train]\nsteps = 1\n")
    found = load_job(job, [f"job.run={run}"])
    assert str(run_folder(found, [])) == Run().dir
    assert str(run_folder(found, ["run.dir=a", "train.steps=3", 'run.dir="b c"'])) == "b c"
    run.write_text("[run]\ndir = 'of/toml'\n")
    assert str(run_folder(found, [])) == "of/toml"


def test_the_command_imports_no_slow_library():
    code = "import sys, cluster.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    isolated = [sys.executable, "-S", "-c", code]
    done = subprocess.run(
        isolated, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert not {"torch", "deepspeed", "ray", "numpy", "data_tools"} & set(done.stdout.split())
