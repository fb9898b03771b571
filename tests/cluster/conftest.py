import pytest

from cluster.__main__ import BACKENDS, main
from cluster.job import load_job, split_overrides
from tests.cluster.slurm_fixture import slurm  # noqa: F401 - a fixture of the session
from tests.conftest import ROOT

JOB = """[job]
name = "small"
run = "mvlm/configs/tiny.toml"
deepspeed = "ds_configs/cpu.json"
processes_per_node = 2
logs = "{logs}"
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job file whose logs go to `logs` beside it; the command is given in the project's root."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(logs=tmp_path / "logs"))
    return path


@pytest.fixture
def cluster(capsys):
    """The command, as (exit code, what it printed, what it complained of)."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as usage:
            code = usage.code
        return code, *capsys.readouterr()

    return run


def rendered(job, backend, *words):
    """What the back-end makes of a job, without the check of its run that the command begins with."""
    own, others = split_overrides(words)
    return BACKENDS[backend].render(load_job(job, own), others)
