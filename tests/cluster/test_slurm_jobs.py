"""Short jobs on a real SLURM cluster: what it takes from the script, what it refuses, and submitit."""

import ast
import json
import sys

import pytest

from benchmarks.claim.__main__ import main as claim
from cluster.slurm import backend
from mvlm.errors import UserError
from tests.cluster.pipeline_fixture import course, small_pipeline  # noqa: F401 - a fixture
from tests.cluster.slurm_fixture import SlurmJob, wait_for
from tests.conftest import TINY, run_command

HOSTILE = """it's $(touch pwned) "50%j" \\ new"""
HOSTILE_OPTION = f"'''--comment={HOSTILE}'''"
STEPS = 60
SUBMITIT = """
import sys
from cluster.slurm.submitit import TrainJob
job = TrainJob(sys.argv[1], sys.argv[3:])
print(job.executor(sys.argv[2]).submit(job).job_id)
"""


@pytest.fixture
def make(slurm, tmp_path, scenes):
    return lambda name, tail="": SlurmJob(slurm, tmp_path / name, scenes / "train", tail)


def facts(slurm, job_id):
    """What SLURM knows about a job, by name."""
    shown = slurm.on("scontrol", "--oneliner", "show", "job", job_id).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word) | {"all": shown}


def test_a_mistake_ends_the_job_and_no_shell_runs_words_of_the_job_file(slurm, make):
    job = make("mistake")
    job.logs = job.folder / HOSTILE.replace("\\", "")  # which SLURM does not allow in paths
    variable = f"job.environment.GREETING={HOSTILE}"
    printed = job.submit(f"job.logs='''{job.logs}'''", variable, f"data.train=/{HOSTILE}", "job.requeue=2")
    assert f"mistake is job {job.id};" in printed
    assert job.end(1) == "1"
    wait_for(lambda: not slurm.on("squeue", "--noheader", f"--jobs={job.id}").stdout)
    told = (job.attempt(1) / "rank-00000.log").read_text()
    assert told.startswith("mvlm: ") and HOSTILE in told and told.count("\n") == 1
    assert job.exit_codes() == ["1"] and (job.logs / f"slurm-{job.id}.log").exists()
    assert not list(job.folder.rglob("pwned"))
    status = slurm.in_this_process("status", job.logs)
    assert "attempt 1 failed with exit code 1" in status and "no step" in status


@pytest.mark.parametrize("request_", ["gres", pytest.param("gpus-per-node", marks=pytest.mark.campaign)])
def test_slurm_gets_the_gpus_and_further_options(slurm, make, request_):
    job = make("gpus")
    options = f'job.sbatch=["--hold", {HOSTILE_OPTION}]'
    where = ["job.gpus_per_node=2", "job.nodes=3", "job.min_nodes=2", "job.time=1-2", "job.cpus_per_process=2"]
    printed = job.submit(*where, f"job.gpu_request={request_}", options)
    known = facts(slurm, job.id)
    assert known["TresPerNode"] == "gres/gpu:2" or known["TresPerNode"] == "gres:gpu:2"
    assert (known["NumNodes"], known["TimeLimit"], known["CPUs/Task"]) == ("2-3", "1-02:00:00", "2")
    assert (known["Requeue"], known["JobName"]) == ("1", "gpus") and f"Comment={HOSTILE} " in known["all"]
    assert f"gpus is job {job.id};" in printed and f"logs -f {job.logs}" in printed
    assert f"job {job.id} is PENDING (JobHeldUser)" in slurm.in_this_process("status", job.file)
    again = slurm.on(sys.executable, "-m", "cluster", "submit", job.file, "--on", "slurm")
    assert again.returncode == 1 and f"is in the queue already, as job {job.id}" in again.stderr
    assert slurm.in_this_process("cancel", job.file) == "gpus has ended before its first step.\n"
    over = slurm.on(sys.executable, "-m", "cluster", "cancel", job.file)
    assert over.returncode == 1 and "there is nothing to cancel" in over.stderr


def test_a_refusal_by_slurm_is_one_sentence(slurm, make):
    job = make("refused")
    with pytest.raises(UserError, match=r"^sbatch refuses .*[Ii]nvalid partition") as refusal:
        job.submit("job.partition=nowhere")
    assert "\n" not in str(refusal.value)
    assert not (job.logs / "job.json").exists()


def test_a_pipeline_fails_at_a_mistake_and_is_mended(slurm, pipeline):
    course(slurm.in_this_process, pipeline, "slurm", "failed")
    assert slurm.on("squeue", "--noheader", "--name=small-behind").stdout == ""


@pytest.mark.campaign
def test_a_job_by_submitit_saves_is_requeued_and_continues(slurm, make, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):  # of a launcher around the submission
        monkeypatch.setenv(name, value)
    job = make("python")
    two = ["job.nodes=2", 'job.time="30"', f"train.steps={STEPS}", *job.words]
    done = slurm.on(sys.executable, "-c", SUBMITIT, job.file, job.folder / "submitit", *two)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    job.make_steps(1)
    assert slurm.on("scancel", "--signal=USR2", job_id).returncode == 0
    wait_for(lambda: not slurm.on("squeue", "--noheader", f"--jobs={job_id}").stdout)
    assert [step for step, _ in job.metrics()] == list(range(1, STEPS + 1))
    first, second = ({path.name for path in job.attempt(n).glob("exit-*")} for n in (1, 2))
    # The launcher ends the other rank, with SIGTERM, if it is later in ending by itself.
    assert "exit-75" in first and first <= {"exit-75", "exit-143"} and second == {"exit-0"}
    said = "".join(path.read_text() for path in (job.folder / "submitit").glob("*_0_log.err"))
    assert "Caught signal SIGUSR2" in said and "Job not requeued" not in said


INTERPRETER = """#!/bin/sh
# The interpreter of a virtual environment that runs something else for training.
case "$*" in
"-m mvlm train "*) {train} ;;
*) exec {python} "$@" ;;
esac
"""
CRASHING = '[ "$SLURM_PROCID" = 0 ] && exit 75; kill -9 $$'  # as for lack of memory, one rank of two
HELD = "touch {folder}/begun; until [ -e {folder}/go ]; do sleep 0.2; done; exit 70"


def environment(job, train):
    """A virtual environment for a job, which runs a line of shell instead of training."""
    venv = job.folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text(INTERPRETER.format(train=train, python=sys.executable))
    (venv / "bin/python").chmod(0o755)
    return venv


@pytest.mark.campaign
def test_a_crash_while_the_controller_is_down_is_retried_when_it_is_back(slurm, make):
    job = make("unheard")
    job.submit(f"job.venv={environment(job, HELD.format(folder=job.folder))}", "job.requeue=1")
    wait_for((job.folder / "begun").exists)
    assert slurm.on("scontrol", "shutdown", "slurmctld").returncode == 0
    (job.folder / "go").touch()
    wait_for(lambda: "is asked again" in (job.attempt(1) / "launcher.log").read_text())
    assert slurm.on("slurmctld").returncode == 0
    assert job.end(2) == "70"


def test_a_crash_is_retried_as_often_as_the_job_file_says(slurm, make):
    job = make("crash")
    venv = environment(job, CRASHING)
    job.submit(f"job.venv={venv}", "job.nodes=2", "job.requeue=1")
    assert job.end(2) == "137"
    wait_for(lambda: not slurm.on("squeue", "--noheader", f"--jobs={job.id}").stdout)
    assert job.exit_codes() == ["137", "137"]  # and not the 75 of the rank that has lost another
    assert slurm.in_this_process("status", job.logs).count("failed with exit code 137") == 2


def test_a_suspended_job_is_not_cancelled_since_it_cannot_save(slurm, make):
    job = make("suspended")
    job.submit(f"job.venv={environment(job, HELD.format(folder=job.folder))}", "job.requeue=0")
    wait_for((job.folder / "begun").exists, lambda: job.said(1))
    assert slurm.on("scontrol", "suspend", job.id).returncode == 0
    refused = rf"^suspended, job {job.id}, is suspended and cannot save: .*scontrol resume {job.id}.*scancel {job.id}"
    with slurm.at_hand(), pytest.raises(UserError, match=refused):
        backend.cancel(job.logs)
    assert facts(slurm, job.id)["JobState"] == "SUSPENDED"
    (job.folder / "go").touch()
    assert slurm.on("scontrol", "resume", job.id).returncode == 0
    wait_for(lambda: not slurm.on("squeue", "--noheader", f"--jobs={job.id}").stdout)


def test_the_ranks_get_what_the_script_exports_despite_export_none(slurm, make):
    job = make("bare")
    job.submit(f"job.venv={environment(job, 'exit 0')}", 'job.sbatch=["--export=NONE"]', "job.requeue=0")
    assert job.end(1) == "0", job.said(1)


def test_the_doctor_counts_a_node_in_two_partitions_once(slurm):
    assert slurm.on("scontrol", "create", "PartitionName=debug", "Nodes=ALL").returncode == 0
    probe = "from mvlm.check.machine.schedulers import *; print(next(find_slurm(Folders())).facts)"
    facts = ast.literal_eval(slurm.on(sys.executable, "-c", probe).stdout)
    assert slurm.on("scontrol", "delete", "PartitionName=debug").returncode == 0
    assert facts["partitions"] == ["debug", "main"] and sum(facts["nodes"].values()) == 5


def test_an_allocation_around_the_submission_does_not_affect_the_ranks(slurm, make, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "1"), ("SLURM_TRES_PER_TASK", "cpu=1,gres/gpu=1")):  # salloc --gpus-per-task=1
        monkeypatch.setenv(name, value)
    job = make("within")
    job.submit(f"job.venv={environment(job, 'exit 0')}", "job.requeue=0")
    assert job.end(1) == "0", job.said(1)


@pytest.mark.campaign  # tests/benchmarks/test_claim.py runs the cells here
def test_the_claims_cells_are_submitted_once_and_measured_after_they_end(slurm, make, tmp_path, capsys):
    job, results = make("grid"), tmp_path / "results/cells.jsonl"
    words = ["run", "--corpus", "scenes", "--tune", "vqa", "--only", "scenes/all/10/0", "scenes/all/10/vqa/0"]
    words += ["--folder", str(tmp_path / "claim"), "--results", str(results), "--set", "train.steps=4"]
    words += [word for word in TINY if not word.startswith(("data.vocabulary", "model.image_size"))]

    def submit(*more):
        with slurm.at_hand():
            assert claim([*words, *more, "--jobs", "slurm", "--job", str(job.file)]) == 0
        return capsys.readouterr().out

    def measure():
        with slurm.at_hand():
            done = run_command([sys.executable, "-m", "benchmarks.claim", *words])
        assert done.returncode == 0, done.stderr
        return done

    assert ": 1 submitted, 1 left until their pretraining has ended." in submit("job.sbatch=['--hold']")
    (path,) = (tmp_path / "claim/small").glob("*.logs/job.json")
    job_id = json.loads(path.read_text())["job_id"]
    assert ": 1 waiting or running already, 1 left until their pretraining has ended." in submit()
    assert measure().stdout.count("waits or runs on a cluster: left to it") == 2 and not results.exists()
    assert slurm.on("scontrol", "release", job_id).returncode == 0
    wait_for(lambda: not slurm.on("squeue", "--noheader", f"--jobs={job_id}").stdout)
    assert measure().stderr.count("Starting") == 1  # the fine-tuning alone
    cells = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(cell["cell"], cell["steps"]) for cell in cells] == [("scenes/all/10", 4), ("scenes/all/10/vqa", 2)]
    assert all(cell["training_s"] > 0 for cell in cells)
