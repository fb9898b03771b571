"""The batch script of a job on SLURM, to be read by a person and run by bash."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.environment import LAUNCHER_VARIABLES, python
from cluster.job import Job, JobError
from cluster.slurm import launchers as slurm_launchers
from cluster.watch import BUG, DONE, FRUITLESS, MISTAKE, PREEMPTED, USAGE, describe_stuck

OURS = ("requeue", "no-requeue", "open-mode", "signal", "output", "error", "array", "wrap", "wait", "parsable", "chdir")
"""Options of sbatch that the script depends on."""
PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)
CRASHES = (BUG, 134, 135, 136, 137, 138, 139)  # exit codes of a rank; above 128 they are signals


@dataclass(frozen=True)
class Task:
    """One run of a job, or of the array that a sweep becomes.

    Args:
        label: "" in a job without a sweep; else names the folders of its logs and its run.
        overrides: `key=value` words of its run.
        run: its folder.
    """

    label: str
    overrides: list[str]
    run: str


def script(job: Job, tasks: Sequence[Task], first_attempt: int) -> str:
    """The script.

    Args:
        first_attempt: number of the attempt that the job begins with.

    Raises:
        JobError: SLURM, or the launcher, cannot do what the job asks for.
    """
    check_options(job)
    if "\\" in str(job.log_folder):
        raise JobError(f"SLURM cannot write to {job.log_folder}, for its backslash: set another job.logs.")
    slurm_launchers.check(job)
    launch = slurm_launchers.launch(job, [word for task in tasks for word in task.overrides])
    parts = [
        ["#!/bin/bash", *(f"#SBATCH {line}" for line in _directives(job, tasks))],
        _opening(job),
        _choice(job, tasks),
        _attempt(job, first_attempt),
        _environment(job),
        _command(job, tasks),
        launch,
        _ending(job),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def check_options(job: Job) -> None:
    """Raises: JobError: `sbatch` has what is no option, or one that is not the user's to set."""
    for option in job.sbatch:
        name = re.fullmatch(r"--([a-z][a-z-]*)(=.*)?", option)
        if not name:
            raise JobError(f"job.sbatch has {option!r}: write --name or --name=value, each a word of the list.")
        if name[1] in OURS:
            raise JobError(f"job.sbatch has {option!r}, which the job's script sets itself: remove it.")


def _directives(job: Job, tasks: Sequence[Task]) -> list[str]:
    is_array = bool(tasks[0].label)
    parallel = f"%{job.sweep.parallel}" if job.sweep and job.sweep.parallel else ""
    gpus = "--gpus-per-node=" if job.gpu_request == "gpus-per-node" else "--gres=gpu:"
    logs = str(job.log_folder).replace("%", "%%")
    lines = [
        f"--job-name={job.name}",
        f"--nodes={job.min_nodes}-{job.nodes}" if 0 < job.min_nodes < job.nodes else f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.ranks_per_node}",
        f"--cpus-per-task={job.cpus_per_process}" if job.cpus_per_process else "",
        f"{gpus}{job.gpus_per_node}" if job.gpus_per_node else "",
        *(f"--{name}={value}" for name in ("time", "partition", "account", "qos") if (value := getattr(job, name))),
        f"--array=0-{len(tasks) - 1}{parallel}" if is_array else "",
        "--requeue" if job.requeue else "--no-requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{job.warning_seconds}",
        f"--output={logs}/slurm-{'%A_%a' if is_array else '%j'}.log",
        *job.sbatch,
    ]
    return [_directive(line) for line in lines if line]


def _directive(line: str) -> str:
    """A line as sbatch reads it: unlike a shell's, its quotes of either kind keep no backslash."""
    name, equals, value = line.partition("=")
    if not value or PLAIN.fullmatch(value):
        return line
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{escaped}"'


def _opening(job: Job) -> list[str]:
    lines = [
        "# Made by `python -m cluster`. Paths count from the folder in which it was submitted. A rank ends with",
        f"# {DONE} when all is done and with {MISTAKE} or {USAGE} for a mistake; {PREEMPTED} means that everything is "
        "saved, and all others are",
        f"# crashes: after both the job is started again, {job.requeue} times at most.",
    ]
    if job.modules:  # before `set -u`, which the scripts of modules do not bear
        lines += [
            'type module >/dev/null 2>&1 || source "${MODULESHOME:-/usr/share/modules}/init/bash"',
            f"{shlex.join(['module', 'load', *job.modules])} || exit {MISTAKE}",
        ]
    return [*lines, "set -euo pipefail"]


def _choice(job: Job, tasks: Sequence[Task]) -> list[str]:
    logs = shlex.quote(str(job.log_folder))
    if not tasks[0].label:
        return [f"logs={logs}", f"run={shlex.quote(tasks[0].run)}", "job=$SLURM_JOB_ID"]
    lines = ["case $SLURM_ARRAY_TASK_ID in"]
    for number, task in enumerate(tasks):
        words = f"task={shlex.quote(task.label)} run={shlex.quote(task.run)} settings=({shlex.join(task.overrides)})"
        lines.append(f"  {number}) {words} ;;")
    return [*lines, "esac", f"logs={logs}/$task", "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"]


def _attempt(job: Job, first: int) -> list[str]:
    return [
        "restarts=${SLURM_RESTART_COUNT:-0}  # SLURM's own, after the loss of a node, among them",
        f"if ((restarts > {job.requeue})); then",
        f'  echo "cluster: $job was started again {job.requeue} times, as job.requeue allows, and ends"',
        f"  exit {PREEMPTED}",
        "fi",
        f"number=$(({first} + restarts))",
        'attempt=$logs/attempt-$(printf "%03d" $number)',
        'mkdir -p "$attempt"',
        'exec >>"$attempt/launcher.log" 2>&1',
        'date +%s >"$attempt/started"',
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        f'echo "cluster: {job.name} is job $job, restart $restarts, on ${{hosts[*]}}"',
    ]


def _environment(job: Job) -> list[str]:
    lines, interpreter = [f"unset {' '.join(LAUNCHER_VARIABLES)}"], shlex.quote(str(python(job)))
    if not job.container:
        lines.append(f"export PATH={shlex.quote(str(python(job).parent))}:$PATH")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in slurm_launchers.exports(job).items()]
    lines += [
        "export MASTER_ADDR=${hosts[0]}",
        "export MASTER_PORT=$((15000 + (SLURM_JOB_ID * 7 + restarts * 131) % 15000))  # its predecessor may be held",
    ]
    if not job.container:
        lines += [
            f'if ! {interpreter} -c "import cluster.rank, mvlm"; then  # by its path: another must not take its place',
            f'  echo "cluster: $(hostname) cannot import mvlm with "{interpreter}": set job.venv to one that it sees"',
            f"  exit {MISTAKE}",
            "fi",
        ]
    return lines


def _command(job: Job, tasks: Sequence[Task]) -> list[str]:
    overrides = ['"${settings[@]}"'] if tasks[0].label else [shlex.quote(word) for word in tasks[0].overrides]
    return [
        "command=(",
        f"  {python(job).name} -m mvlm train {shlex.quote(job.run)}",
        f"  --deepspeed_config {shlex.quote(job.deepspeed)}",
        *(f"  {word}" for word in overrides),
        ")",
    ]


def _ending(job: Job) -> list[str]:
    crashes = " ".join(map(str, CRASHES))
    return f"""\
stopping=
trap 'stopping=yes; stop || true' USR1 TERM
launch &
while true; do
  stopping=
  code=0
  wait $! || code=$?
  [[ $stopping ]] || break  # else it was the trap that ended the wait
done

# The ranks' own codes, causes before their consequences; a launcher has codes of its own.
verdict=$((code > {USAGE} ? code : {BUG}))
for known in {MISTAKE} {USAGE} {crashes} {PREEMPTED}; do
  if [[ -e $attempt/exit-$known ]]; then
    verdict=$known
    break
  fi
done
if ((code == {DONE})) && [[ -e $attempt/exit-{DONE} ]]; then
  verdict={DONE}
fi
echo "$verdict" >"$attempt/exit_code"
echo "cluster: restart $restarts of $job ends with $verdict"

newest_step() {{ # that the run has saved or told of
  {{
    ls "$run/checkpoints" | sed -n 's/^step_0*\\([0-9][0-9]*\\)$/\\1/p'
    tail -c 65536 "$run/metrics.jsonl" | sed -n 's/^{{"step": \\([0-9]*\\), "loss".*/\\1/p'
  }} 2>/dev/null | sort -n | tail -n 1
}}
step=$(newest_step || true)
echo "${{step:-0}}" >"$attempt/step"
before=$logs/attempt-$(printf "%03d" $((number - {FRUITLESS})))/step
if ((verdict > {USAGE} && restarts >= {FRUITLESS})) && [[ -e $before ]] && ((step <= $(<"$before"))); then
  echo "cluster: {describe_stuck("${step:-0}")}"
elif ((verdict > {USAGE} && restarts < {job.requeue})); then
  facts=$(scontrol --oneliner show job "$job" || true)
  # not when cancelled, nor when this node was cut off and the job has been started without it
  if [[ $facts == *" JobState=RUNNING "* && $facts == *" Requeue=1 Restarts=$restarts "* ]]; then
    scontrol requeue "$job"
  fi
fi
exit "$verdict\"""".splitlines()
