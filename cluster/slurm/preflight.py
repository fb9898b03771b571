"""A preflight on nodes that SLURM gives as it would give them to the job: one srun, in the foreground."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

from mvlm.errors import ExitCode, UserError

from ..attempt import FINAL
from ..environment import for_process, inherited, python
from ..job import Job, check_files, refuse
from .options import further, placement
from .queue import require

LIMIT_MINUTES = 10  # even if something hangs
LAST_SECONDS = 30  # for tasks to end after the first has ended
LOST_NODE = re.compile(r"srun: error: (?:Task launch for \S+ failed on node|Node failure on) ([\w.-]+)")
OF_MVLM = (*FINAL, ExitCode.BUG)
CANNOT = ("container", "ray_address")
TASK = """export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
exec "$@"
"""


def preflight(job: Job, overrides: list[str]) -> int:
    """Wait for the nodes, measure, and print what is found.

    Returns:
        0 if all is well; 1 if not, or if SLURM refuses.

    Raises:
        UserError: the job cannot run, or this machine has no srun.
    """
    check_files(job)
    refuse(job, "slurm", CANNOT)
    require("srun")
    variables = inherited() | for_process(job)
    with subprocess.Popen(
        command(job, overrides), env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as step:
        assert step.stderr
        lost = set()
        for line in step.stderr:
            sys.stderr.write(line)
            lost |= set(LOST_NODE.findall(line))
    if step.returncode not in OF_MVLM:
        nodes = ",".join(sorted(lost))
        raise UserError(
            f'SLURM does not reach {nodes}: have it repaired, or add "--exclude={nodes}" to job.sbatch.'
            if lost
            else f"srun ended with exit code {step.returncode}: see what it says above."
        )
    return step.returncode


def command(job: Job, overrides: list[str]) -> list[str]:
    """The argument list of srun; a task that fails, or a node that is lost, leaves the others to say so."""
    asked = {"job-name": f"{job.name}-preflight"} | placement(job) | further(job)
    options = [f"--{name}" if value is None else f"--{name}={value}" for name, value in asked.items()]
    return ["srun", *options, f"--time={LIMIT_MINUTES}", *_task(job, overrides)]


def within_job(job: Job, overrides: list[str]) -> list[str]:
    """The same on the nodes of a job that SLURM has begun."""
    return ["srun", f"--time={LIMIT_MINUTES}", *_task(job, overrides)]


def _task(job: Job, overrides: list[str]) -> list[str]:
    bounds = (f"--wait={LAST_SECONDS}", "--no-kill", "--kill-on-bad-exit=0", "--export=ALL")
    run = [str(python(job)), "-u", "-m", "mvlm", "preflight", job.run, *overrides]
    modules = f"{shlex.join(['module', 'load', *job.modules])} || exit {ExitCode.MISTAKE}\n" if job.modules else ""
    shell = ["bash", *(["--login"] if job.modules else []), "-c", modules + TASK, "preflight"]
    return [*bounds, *shell, *run]
