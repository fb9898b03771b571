"""A job on a SLURM cluster that gets a signal, loses a node and has another cut off; a sweep and others run meanwhile.

The others use the time that SLURM takes, above all to notice that a node is lost.
"""

import json
import signal
import time
from contextlib import contextmanager

import pytest

from mvlm.checkpoint.newest import newest_whole
from tests.cluster.slurm_fixture import SlurmJob, StepClock, wait_for
from tests.conftest import ROOT

STEPS, SWEEP_STEPS = 60, 120
SWEEP = '[sweep]\nparallel = 2\nvalues."optim.lr" = [1e-3, 1e-4]\n'
FAULTY, QUIET = 'job.sbatch=["--exclude=n4,n5"]', 'job.sbatch=["--nodelist=n4,n5"]'
HOSTILE = "$(touch pwned)"
TAGS = "two words, and more"
TWO_NODES = ["job.nodes=2", "job.requeue=5", f"train.steps={STEPS}"]

LAUNCHERS = ("pdsh", "torchrun")


class Story:
    """What happens to the jobs, and the observations that the tests need."""

    def __init__(self, slurm, folder, shards, launchers, with_sweep):
        self.slurm = slurm
        self.job = SlurmJob(slurm, folder / "job", shards)
        self.undisturbed = SlurmJob(slurm, folder / "undisturbed", shards)
        self.launched = {name: SlurmJob(slurm, folder / name, shards) for name in launchers}
        self.sweep = SlurmJob(slurm, folder / "sweep", shards, SWEEP)
        self.trials = [self.sweep.trial(number) for number in (0, 1) if with_sweep]
        self.cancelled, self.injected = {}, {}

    def tell(self):
        self.job.submit(*TWO_NODES, FAULTY)
        self.undisturbed.submit(*TWO_NODES, QUIET, "job.launcher=deepspeed", f"job.environment.MLFLOW_TAGS={TAGS}")
        with StepClock(self.job) as clock:
            self.warn_of_the_limit()
            self.kill_a_node()
            self.cut_a_link()
            self.code = self.job.end(4)
        for number, (fault, when) in enumerate(self.injected.items(), start=1):
            seconds = clock.passed(self.job.steps(number)[-1]) - when
            print(f"{fault}: {seconds:.1f} s until the run had passed the step it had reached")
        for job in (self.undisturbed, *self.trials):
            job.end(len(job.exit_codes()))
        wait_for(lambda: not self.slurm.on("squeue", "--noheader").stdout)

    def warn_of_the_limit(self):
        self.job.make_steps(1, more_than=5)
        with suspended(self.job.ranks("n1")):
            self.status_while_running = self.slurm.in_this_process("status", self.job.file)
        self.injected["signal before the limit"] = time.monotonic()
        assert self.slurm.on("scancel", "--batch", "--signal=USR1", self.job.id).returncode == 0
        self.job.end(1)
        wait_for(self.environment_of_a_rank, lambda: self.undisturbed.said(1))

    def environment_of_a_rank(self):
        """Of the undisturbed job; None before one has begun."""
        ranks = (rank for rank in self.undisturbed.ranks("n5") if rank.cmdline()[1:3] == ["-m", "mvlm"])
        self.environment = next((rank.environ() for rank in ranks), None)
        return self.environment

    def kill_a_node(self):
        self.job.make_steps(2, more_than=self.job.steps(1)[-1] + 2)
        self.injected["node killed"] = time.monotonic()
        self.slurm.node("kill", "n2")
        if self.trials:
            self.sweep.submit(FAULTY, f"train.steps={SWEEP_STEPS}")
        self.suspend_on_the_first_node()
        self.slurm.boot("n2")

    def suspend_on_the_first_node(self):
        """Suspend what runs on n1 at its next step: on a busy machine it would be done before that node is cut off."""
        self.stale, self.held = [], []
        resumed_at = self.job.steps(2)[-1]
        waiting = [(trial, 1, 0, self.stale) for trial in self.trials] + [(self.job, 3, resumed_at, self.held)]

        def all_suspended():
            for job, number, step, stopped in list(waiting):
                if max(job.steps(number), default=0) > step and (ranks := job.ranks("n1")):
                    stopped += ranks
                    ranks[-1].send_signal(signal.SIGSTOP)
                    waiting.remove((job, number, step, stopped))
            return not waiting

        wait_for(all_suspended, lambda: self.job.said(3))

    def cut_a_link(self):
        self.injected["link of the first node cut"] = time.monotonic()
        self.slurm.node("cut", "n1")
        for rank in self.held:
            rank.send_signal(signal.SIGCONT)
        for launcher in self.launched:
            self.cancel(launcher)
        for trial in self.trials:
            trial.end(2)
        for rank in self.stale:  # they still reach the storage
            rank.send_signal(signal.SIGCONT)
        self.stale_ended = [rank.wait(timeout=60) for rank in self.stale]
        self.job.make_steps(4)
        self.slurm.node("heal", "n1")

    def cancel(self, launcher):
        words = [f"job.launcher={launcher}", f"job.environment.PYTHON_X={HOSTILE}"]
        self.launched[launcher].submit(*TWO_NODES, QUIET, *words)
        self.launched[launcher].make_steps(1)
        self.cancelled[launcher] = self.slurm.cluster("cancel", self.launched[launcher].logs)


@contextmanager
def suspended(processes):
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@pytest.fixture(scope="module")
def story(request, slurm, scenes, tmp_path_factory):
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    launchers = {params["launcher"] for params in calls if params.get("launcher") in LAUNCHERS}
    with_sweep = any("sweep" in item.name for item in request.session.items if item.path == request.path)
    story = Story(slurm, tmp_path_factory.mktemp("story"), scenes / "train", sorted(launchers), with_sweep)
    story.tell()
    return story


def losses(job):
    """Of each step; repeated steps must have the same."""
    by_step = {}
    for step, loss in job.metrics():
        assert by_step.setdefault(step, loss) == loss, f"step {step} was {by_step[step]} and then {loss}"
    return [by_step[step] for step in sorted(by_step)]


def test_a_job_survives_a_signal_a_dead_node_and_a_cut_link(story):
    first, _, _, last = story.job.exit_codes()  # those between were SLURM's to end
    assert (first, last) == ("75", "0") and story.code == "0"
    assert sorted({step for step, _ in story.job.metrics()}) == list(range(1, STEPS + 1))


def test_its_losses_equal_those_of_an_undisturbed_run_bit_for_bit(story):
    assert story.undisturbed.exit_codes() == ["0"]
    assert losses(story.job) == losses(story.undisturbed)


def test_deepspeeds_launcher_passes_the_environment_on_and_keeps_it_out_of_its_log(story):
    assert story.environment["MLFLOW_TAGS"] == TAGS
    assert TAGS not in (story.undisturbed.attempt(1) / "launcher.log").read_text()


def test_no_step_is_repeated_after_a_signal(story):
    first, second = story.job.steps(1), story.job.steps(2)
    assert first[-1] + 1 == second[0] and first[0] == 1
    assert "Stopped by a signal at step" in (story.job.attempt(1) / "rank-00000.log").read_text()


def test_a_lost_node_costs_only_the_steps_since_the_checkpoint(story):
    for number in (3, 4):
        before, after = story.job.steps(number - 1)[-1], story.job.steps(number)[0]
        assert before - 40 <= after <= before + 1, (before, after)  # one checkpoint may be under way


@pytest.mark.campaign
def test_a_rank_of_a_sweep_that_was_cut_off_ends_at_its_next_step_and_does_no_harm(story):
    assert len(story.stale) == 2
    for trial in story.trials:
        told = (trial.attempt(1) / "rank-00000.log").read_text()
        assert "A later attempt at" in told and "ends at step" in told
        assert losses(trial) and trial.metrics()[-1][0] == SWEEP_STEPS and trial.exit_codes()[-1] == "0"
        assert len(trial.exit_codes()) == 2  # its script, cut off, has not restarted the job


def test_every_remaining_checkpoint_is_whole(story):
    for job in (story.job, *story.trials, *story.launched.values()):
        assert (newest := newest_whole(job.run)), job.run
        assert newest.name.startswith("step_")


@pytest.mark.campaign
def test_the_runs_of_a_sweep_differ_as_the_job_file_says(story):
    rates = []
    for trial in story.trials:
        lines = (trial.run / "metrics.jsonl").read_text().splitlines()
        rates.append(max(json.loads(line)["lr"] for line in lines))
    assert rates[0] == pytest.approx(10 * rates[1])
    status = story.slurm.cluster("status", story.sweep.file)
    assert status.count(f"is done, step {SWEEP_STEPS}  loss") == 2 and "2 runs" in status


@pytest.mark.parametrize("launcher", [pytest.param(name, marks=pytest.mark.campaign) for name in LAUNCHERS])
def test_ranks_save_when_cancelled_under_every_launcher(story, launcher):
    job = story.launched[launcher]
    step = job.steps(1)[-1]
    assert job.exit_codes() == ["75"] and story.cancelled[launcher] == f"{launcher} has ended at step {step}.\n"
    assert newest_whole(job.run).name == f"step_{step:08d}"
    assert losses(job) == losses(story.undisturbed)[:step] and not (ROOT / "pwned").exists()


def test_status_and_logs_show_all_attempts_without_accounting(story):
    assert story.slurm.on("sacct").returncode != 0
    assert " is RUNNING on n[1-2], " in story.status_while_running and "attempt 1 runs" in story.status_while_running
    status = story.slurm.in_this_process("status", story.job.logs.parent)
    assert "is not in the queue\n  attempt 1 was preempted, everything saved (" in status
    assert "\n  attempt 4 is done (" in status and f"step {STEPS}  loss" in status
    printed = story.slurm.cluster("logs", "-f", story.job.file)
    attempts, _, slurms_own = printed.rpartition("==>")
    assert attempts.count("==>") == 4 and f"\n0: step {STEPS} " in attempts and "\ncluster: job is job" in attempts
    assert "NODE FAILURE" in slurms_own
