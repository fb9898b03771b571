"""What `python -m cluster preflight` starts, and what it refuses before it starts anything."""

import os
import subprocess
import sys

import pytest

from cluster.job import load_job
from cluster.slurm import preflight as slurm_preflight
from tests.conftest import ROOT, free_port


@pytest.mark.campaign
def test_on_this_machine_it_measures_the_ranks_of_the_job(job, tmp_path):
    words = ["preflight", job, "--on", "local", f"run.dir={tmp_path / 'run'}", "job.environment.NCCL_DEBUG=INFO"]
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "ranks: 2  nodes: 1  rounds of pairs: 0" in done.stdout and "all 2 ranks: " in done.stdout
    assert "; NCCL_DEBUG=INFO" in done.stdout and done.stdout.endswith("preflight: all is well\n")


def test_srun_asks_for_the_same_resources_as_the_job(job):
    job.write_text(job.read_text().replace("processes_per_node = 2", "gpus_per_node = 8"))
    given = ["nodes=4", "min_nodes=3", "cpus_per_process=6", "partition=gpu", "gpu_request=gres", "venv=/shared/venv"]
    given += ['modules=["cuda/13", "a b"]', 'sbatch=["--constraint=h100"]']
    argv = slurm_preflight.command(load_job(job, [f"job.{word}" for word in given]), ["run.dir=a b"])
    options = argv[1 : argv.index("bash")]
    wanted = ("--nodes=3-4", "--ntasks-per-node=8", "--cpus-per-task=6", "--gres=gpu:8", "--partition=gpu")
    assert argv[0] == "srun" and {*wanted, "--constraint=h100", "--no-kill"} <= set(options)
    assert "module load cuda/13 'a b' || exit 1" in argv[argv.index("-c") + 1]
    assert argv[-6:] == ["-u", "-m", "mvlm", "preflight", "mvlm/configs/tiny.toml", "run.dir=a b"]
    assert argv[-7] == "/shared/venv/bin/python"


def test_a_machine_without_srun_is_reported(job, cluster, monkeypatch):
    monkeypatch.setenv("PATH", os.fspath(job.parent))
    code, _, err = cluster("preflight", job, "--on", "slurm")
    assert code == 1 and "There is no srun on this machine" in err and err.count("\n") == 1


def test_settings_that_a_preflight_cannot_honour_are_refused(job, cluster):
    for backend in ("slurm", "ray"):
        code, _, err = cluster("preflight", job, "--on", backend, "job.container=image")
        assert code == 1 and f"job.container is 'image', which the {backend} back-end cannot honour" in err


def test_a_ray_cluster_that_does_not_answer_is_named(job, cluster, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    code, _, err = cluster("preflight", job, "--on", "ray")
    assert code == 1 and "no address of a Ray cluster: set job.ray_address" in err
    address = f"http://127.0.0.1:{free_port()}"
    code, _, err = cluster("preflight", job, "--on", "ray", f"job.ray_address={address}")
    assert code == 1 and f"No job server of Ray answers at {address}" in err
    assert not (job.parent / "logs").exists()
