"""A preflight on nodes that SLURM gives as it would give them to the job: one srun, in the foreground."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

from cluster.environment import added, inherited, python
from cluster.job import Job, JobError, check_files, refuse

LIMIT_MINUTES = 10  # whatever hangs
LAST_SECONDS = 30  # that tasks have to end in when the first has ended
LOST_NODE = re.compile(r"srun: error: (?:Task launch for \S+ failed on node|Node failure on) ([\w.-]+)")
OF_MVLM = (0, 1, 2, 70)
CANNOT = ("container", "ray_address")
TASK = """export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
exec "$@"
"""


def preflight(job: Job, overrides: list[str]) -> int:
    """Wait for the nodes, measure, and print what is found.

    Returns:
        0 when all is well; 1 when not, or when SLURM refuses.

    Raises:
        JobError: the job cannot run, or this machine has no srun.
    """
    check_files(job)
    refuse(job, "slurm", CANNOT)
    if shutil.which("srun") is None:
        raise JobError("There is no srun here: give the command on a machine with SLURM's commands, a login node.")
    variables = inherited() | added(job)
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
        raise JobError(
            f'SLURM does not reach {nodes}: have it seen to, or add "--exclude={nodes}" to job.sbatch.'
            if lost
            else f"srun ended with exit code {step.returncode}: see what it says above."
        )
    return step.returncode


def command(job: Job, overrides: list[str]) -> list[str]:
    """The argument list of srun; a task that fails, or a node that is lost, leaves the others to say so."""
    gpus = "--gpus-per-node=" if job.gpu_request == "gpus-per-node" else "--gres=gpu:"
    nodes = f"{job.min_nodes}-{job.nodes}" if 0 < job.min_nodes < job.nodes else str(job.nodes)
    options = [
        *(f"--job-name={job.name}-preflight", f"--nodes={nodes}", f"--ntasks-per-node={job.ranks_per_node}"),
        *([f"--cpus-per-task={job.cpus_per_process}"] if job.cpus_per_process else []),
        *([f"{gpus}{job.gpus_per_node}"] if job.gpus_per_node else []),
        *(f"--{name}={value}" for name in ("partition", "account", "qos") if (value := getattr(job, name))),
        *job.sbatch,
        *(f"--time={LIMIT_MINUTES}", f"--wait={LAST_SECONDS}", "--no-kill", "--kill-on-bad-exit=0"),
    ]
    run = [str(python(job)), "-u", "-m", "mvlm", "preflight", job.run, *overrides]
    modules = f"{shlex.join(['module', 'load', *job.modules])} || exit 1\n" if job.modules else ""
    shell = ["bash", *(["--login"] if job.modules else []), "-c", modules + TASK, "preflight"]
    return ["srun", *options, *shell, *run]
