"""`mvlm check` checks a run before its job is queued, on every back-end."""

import os
import re
import sys

import pytest

from cluster import check
from cluster.job import load_job
from cluster.record import JobRecord
from mvlm.errors import UserError
from tests.conftest import TINY


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A SLURM that accepts every script; the file that exists once it was given one."""
    (tmp_path / "bin").mkdir()
    command, asked = tmp_path / "bin/sbatch", tmp_path / "asked"
    command.write_text(f"#!/bin/sh\ntouch {asked}\necho 17\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return asked


@pytest.mark.parametrize("backend", ["slurm", pytest.param("local", marks=pytest.mark.campaign)])
def test_a_run_that_cannot_begin_is_not_queued(job, cluster, sbatch, tmp_path, backend):
    words = ["data.train=shards/nowhere", "train.stpes=3", f"run.dir={tmp_path}/run"]
    code, out, err = cluster("submit", job, "--on", backend, *words)
    assert (code, out) == (1, "") and not sbatch.exists() and not (tmp_path / "logs").exists()
    first, *wrong = err.splitlines()
    assert first == "cluster: The run cannot begin, as `mvlm check` says:"
    assert (
        "unknown key train.stpes; did you mean train.steps?" in wrong[0] and "No shards at shards/nowhere" in wrong[1]
    )
    assert len(wrong) == 2


def test_a_job_waiting_on_another_back_end_is_refused_until_it_has_ended(job, cluster, sbatch, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("its run was checked")

    monkeypatch.setattr("cluster.__main__.check_run", refuse)
    logs = tmp_path / "logs"
    logs.mkdir()
    JobRecord("small", "slurm", str(tmp_path / "run"), "host", job_id="17").save(logs)
    before = (logs / "job.json").read_text()
    squeue = sbatch.parent / "bin/squeue"
    squeue.write_text("#!/bin/sh\necho '17|PENDING||Priority|0:00|1:00'\n")
    squeue.chmod(0o755)
    code, _, err = cluster("submit", job, "--on", "local")
    assert code == 1 and "small is under way on slurm (job 17 is PENDING (Priority)): cancel it" in err
    assert (logs / "job.json").read_text() == before
    squeue.write_text("#!/bin/sh\n")  # it has ended
    code, _, err = cluster("submit", job, "--on", "local")
    assert code == 1 and "its run was checked" in err


@pytest.mark.campaign
def test_paths_on_a_disk_of_the_nodes_are_a_warning(job, cluster, sbatch, scenes, tmp_path, monkeypatch):
    """For a job with GPUs: what libraries print on a machine without one does not get in the way."""
    monkeypatch.delenv("DS_ACCELERATOR")
    job.write_text(job.read_text().replace("processes_per_node = 2", "gpus_per_node = 2"))
    given = [*TINY, f"run.dir={tmp_path}/run", "train.steps=1", "eval.every=5"]
    shards = [f"data.train={scenes}/train", f"data.eval={scenes}/eval"]
    told = "cluster: warning: not visible from this machine, so not checked: No shards at /no-such-disk/shards"
    code, out, err = cluster("submit", job, "--on", "slurm", *given, *shards, "data.eval=/no-such-disk/shards")
    assert code == 0, err
    assert "small is job 17" in out and sbatch.exists()
    assert told in err and "cluster: warning: eval.every is 5" not in err
    code, out, err = cluster("render", job, "--on", "local", *given, *shards)
    assert code == 0 and "deepspeed" in out
    assert err.splitlines() == [
        "cluster: warning: eval.every is 5 and the run has 1 step: it is evaluated only after the last; lower it."
    ]


def answering(folder, text):
    """A virtual environment whose Python runs a line of shell."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin/python").chmod(0o755)
    return folder


def test_the_jobs_own_interpreter_is_asked_in_its_environment(job, tmp_path):
    finding = (
        '{"findings": [{"topic": "data", "verdict": "wrong", "sentence": "No shards at \'$TOKEN\' $*: make it."}]}'
    )
    venv = answering(tmp_path / "venv", f"cat <<E\n{finding}\nE")
    given = load_job(job, [f"job.venv={venv}", "job.environment.TOKEN=/etc/x", "job.nodes=3"])
    with pytest.raises(UserError) as error:
        check.check_run(given, ["a=b"], here=False)
    said = "-m mvlm check mvlm/configs/tiny.toml --deepspeed_config ds_configs/cpu.json --world 6 --json a=b"
    assert str(error.value).splitlines()[1:] == [f"  No shards at '/etc/x' {said}: make it."]


def test_an_interpreter_without_mvlm_is_named(job, tmp_path, capsys):
    venv = answering(tmp_path / "venv", "echo 'No module named mvlm' >&2; exit 1")
    given = load_job(job, [f"job.venv={venv}"])
    with pytest.raises(UserError, match=r"cannot be checked \(No module named mvlm\): see what `.*/venv/bin/python -m"):
        check.check_run(given, [], here=True)
    with_modules = load_job(job, [f"job.venv={venv}", 'job.modules=["cuda"]'])
    check.check_run(with_modules, [], here=False)
    assert "could not be checked from this machine (No module named mvlm)" in capsys.readouterr().err


def test_this_python_checks_for_one_that_is_not_visible_and_says_so(job):
    for word in ("job.container=image.sqsh", "job.venv=/no-such-disk/venv"):
        asked, doubt = check._interpreter(load_job(job, [word]))
        assert asked == sys.executable and "is not visible from this machine: the run is checked by" in doubt


def test_each_value_of_a_sweep_is_checked_once(job):
    job.write_text(job.read_text() + '[sweep]\nvalues = { "optim.lr" = [1, 2, 3], "run.seed" = [4, 5] }\n')
    words = list(check._runs(load_job(job), ["train.steps=3"]))
    assert [found[1:] for found in words] == [
        ["optim.lr=1", "run.seed=4"],
        ["optim.lr=2", "run.seed=5"],
        ["optim.lr=3", "run.seed=4"],
    ]


def test_paths_are_found_in_sentences():
    text = "No shards at /data/a b: it's at https://host/x, '/y.toml' and runs/mine (/tmp/z)."
    assert re.findall(check.PATH, text) == ["/data/a", "/y.toml", "/tmp/z"]
