"""The batch script of a job on SLURM, read by people and run by bash: job.sbatch, beside this file, filled in."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvlm.errors import ExitCode, UserError

from .. import rank
from ..attempt import FRUITLESS, describe_stuck
from ..environment import LAUNCHER_VARIABLES, python, referred
from ..job import Job
from . import launchers, options

TEMPLATE = Path(__file__).with_name("job.sbatch")


@dataclass(frozen=True)
class ScriptRun:
    """One run of a job, or of the array that a sweep becomes.

    Args:
        label: "" in a job without a sweep; otherwise it names the folders of its logs and its run.
        overrides: `key=value` words of its run.
        folder: of the run.
    """

    label: str
    overrides: list[str]
    folder: str


def script(job: Job, runs: Sequence[ScriptRun], first_attempt: int) -> str:
    """The script.

    Args:
        first_attempt: number of the attempt that the job begins with.

    Raises:
        UserError: SLURM, or the launcher, cannot do what the job asks for.
    """
    directives = "\n".join(options.directives(_chosen(job, runs)))
    if "\\" in str(job.log_folder):
        raise UserError(f"SLURM cannot write to {job.log_folder}, because of its backslash: set another job.logs.")
    launchers.check(job)
    return launchers.BashTemplate(TEMPLATE.read_text(encoding="utf-8")).substitute(
        directives=directives,
        requeue=job.requeue,
        modules=options.load_modules(job),
        run=_choice(job, runs),
        first=first_attempt,
        name=job.name,
        mistake=int(ExitCode.MISTAKE),
        environment=_environment(job),
        import_check="" if job.container else _import_check(job),
        command=_command(job, runs),
        launch=launchers.launch(job, [word for run in runs for word in run.overrides]),
        stop=launchers.LAUNCHERS[job.launcher].stop,
        fruitless=job.requeue + 1 if job.command else FRUITLESS,  # a command makes no steps
        stuck=describe_stuck("${step:-0}"),
    )


def _chosen(job: Job, runs: Sequence[ScriptRun]) -> dict[str, str | None]:
    is_array = bool(runs[0].label)
    parallel = f"%{job.sweep.parallel}" if job.sweep and job.sweep.parallel else ""
    logs = str(job.log_folder).replace("%", "%%")
    return {
        "job-name": job.name,
        **options.placement(job),
        **({"time": job.time} if job.time else {}),
        **({"array": f"0-{len(runs) - 1}{parallel}"} if is_array else {}),
        "requeue" if job.requeue else "no-requeue": None,
        "open-mode": "append",
        "signal": f"B:USR1@{job.warning_seconds}",
        "output": f"{logs}/slurm-{'%A_%a' if is_array else '%j'}.log",
        **options.further(job),
    }


def _choice(job: Job, runs: Sequence[ScriptRun]) -> str:
    logs = shlex.quote(str(job.log_folder))
    if not runs[0].label:
        return (
            "if [[ -v SLURM_ARRAY_TASK_ID ]]; then\n"
            f'  echo "cluster: {job.name} is one run, which array tasks cannot share: submit it without --array"\n'
            f"  exit {ExitCode.MISTAKE}\n"
            "fi\n"
            f"logs={logs}\nrun={shlex.quote(runs[0].folder)}\njob=$SLURM_JOB_ID"
        )
    cases = [
        f"  {number}) task={shlex.quote(run.label)} run={shlex.quote(run.folder)} "
        f"settings=({shlex.join(run.overrides)}) ;;"
        for number, run in enumerate(runs)
    ]
    job_id = "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    return "\n".join(["case $SLURM_ARRAY_TASK_ID in", *cases, "esac", f"logs={logs}/$task", job_id])


def _environment(job: Job) -> str:
    lines = [f"unset {' '.join(LAUNCHER_VARIABLES)}"]
    for name, value in job.environment.items():
        if other := referred(value):
            advice = f"it is the value of job.environment.{name}; name it in --export of job.sbatch"
            lines.append(f'[[ -v {other} ]] || refuse "$(hostname) has not been given {other}: {advice}"')
    if not job.container:
        lines.append(f"export PATH={shlex.quote(str(python(job).parent))}:$PATH")
    return "\n".join(
        [*lines, *(f"export {launchers.assignment(name, value)}" for name, value in launchers.exports(job).items())]
    )


def _import_check(job: Job) -> str:
    """Run with the variables that the ranks are given and the launcher is not."""
    exported, interpreter = launchers.exports(job), shlex.quote(str(python(job)))
    others = {name: value for name, value in launchers.variables(job).items() if name not in exported}
    words = " ".join([*(launchers.assignment(name, value) for name, value in others.items()), interpreter])
    return (
        f'{words} -c "import {rank.__name__}, mvlm" ||  # by its path: another must not take its place\n'
        f'  refuse "$(hostname) cannot import mvlm with "{interpreter}": set job.venv to one that it sees"\n'
    )


def _command(job: Job, runs: Sequence[ScriptRun]) -> str:
    if job.command:
        return f"  {python(job).name} -m mvlm {shlex.join(job.command)}"
    overrides = ['"${settings[@]}"'] if runs[0].label else [shlex.quote(word) for word in runs[0].overrides]
    run, deepspeed = map(shlex.quote, job.kept)
    lines = [
        f"{python(job).name} -m mvlm train {run}",
        f"--deepspeed_config {deepspeed}",
        *overrides,
    ]
    return "\n".join(f"  {line}" for line in lines)
