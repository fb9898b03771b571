"""What starts the ranks within a SLURM job: srun itself, torchrun, or DeepSpeed's launcher over srun or pdsh."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cluster import environment
from cluster.environment import python
from cluster.job import Job, JobError, run_folder

UNQUOTED = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
STOP_STEPS = """\
stop() { # each rank is told by SLURM: srun, told to end, would kill them
  scancel --signal=USR1 "$job"
}"""
STOP_RANK = """\
stop() { # SLURM does not know the ranks; the first is on this node, and tells the others
  while [[ ! -s $attempt/rank-00000.pid ]] && kill -0 $! 2>/dev/null; do sleep 1; done
  kill -USR1 "$(<"$attempt/rank-00000.pid")"
}"""


def defaults(job: Job) -> dict[str, str]:
    """Variables that the ranks are given where job.environment does not set them."""
    threads = {"OMP_NUM_THREADS": str(job.cpus_per_process)} if job.cpus_per_process else {}
    return {"PYTHONUNBUFFERED": "1"} | threads | environment.defaults(job)


def exports(job: Job) -> dict[str, str]:
    """Variables for the script to export."""
    return defaults(job) if _is_pdsh(job) else defaults(job) | job.environment


def check(job: Job) -> None:
    """Raises: JobError: the launcher cannot do what the job asks for."""
    if job.container and job.launcher in ("deepspeed", "pdsh"):
        raise JobError(
            f"job.container is {job.container!r}, which the launcher {job.launcher} cannot enter: "
            'set job.launcher to "srun" or "torchrun".'
        )
    if job.launcher == "pdsh":  # a remote shell reads them, and DeepSpeed puts no quotes around them
        for path in (Path.cwd(), job.log_folder, python(job)):
            if not UNQUOTED.fullmatch(str(path)):
                raise JobError(f"The launcher pdsh cannot work with the path {str(path)!r}: use plain letters in it.")


def launch(job: Job, overrides: Iterable[str]) -> list[str]:
    """Lines of bash: functions `launch`, which runs the ranks to their end, and `stop`, which has them save and end.

    They use `command`, `attempt`, `job`, `hosts` and MASTER_*.

    Args:
        overrides: of all its runs; a container is given the folders that they name.
    """
    container = _container(job, list(overrides)) if job.container else []
    if job.launcher == "srun":
        lines = _srun(job, container)
    elif job.launcher == "torchrun":
        lines = _torchrun(job, container)
    else:
        lines = _deepspeed(job)
    return [
        "launch() {",
        *(f"  {line}" for line in lines),
        "}",
        *(STOP_RANK if _is_pdsh(job) else STOP_STEPS).split("\n"),
    ]


def _srun(job: Job, container: list[str]) -> list[str]:
    return [
        f"srun {' '.join(_tasks(job.ranks_per_node))} \\",
        *(f"  {line} \\" for line in [" ".join(_step(job, 1)), *container]),
        f'  {python(job).name} -m cluster.rank "$attempt" "${{command[@]}}"',
    ]


def _torchrun(job: Job, container: list[str]) -> list[str]:
    return [
        f"srun {' '.join(_tasks(1))} \\",
        *(f"  {line} \\" for line in [" ".join(_step(job, job.ranks_per_node)), *container]),
        """  bash -c 'trap "" USR1; PET_NODE_RANK=$SLURM_NODEID exec "$@"' torchrun \\""",  # it would die of USR1
        f"  {python(job).name} -m torch.distributed.run --nnodes ${{#hosts[@]}} \\",
        f'  --nproc-per-node {job.ranks_per_node} --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \\',
        '  -m cluster.rank "$attempt" "${command[@]}"',
    ]


def _deepspeed(job: Job) -> list[str]:
    name = python(job).name
    lines = [f'printf "%s slots={job.ranks_per_node}\\n" "${{hosts[@]}}" >"$attempt/hostfile"']
    runner = [
        f'{name} -m deepspeed.launcher.runner --force_multi --no_ssh_check --hostfile "$attempt/hostfile" \\',
        '  --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \\',
    ]
    if _is_pdsh(job):
        given = defaults(job) | job.environment
        return [
            "variables=( # not exported: DeepSpeed would have the remote shells read some of them",
            '  "PATH=$PATH" "SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-}"',
            *(f"  {shlex.quote(f'{name}={value}')}" for name, value in given.items()),
            ")",
            '(umask 077 && printf "%s\\0" env "${variables[@]}" "${command[@]}" >"$attempt/command")',
            *lines,
            *runner,
            '  --launcher pdsh --no_local_rank --module cluster.rank "$attempt"',
        ]
    step = [f"--ntasks-per-node={job.ranks_per_node}", *_step(job, 1)]
    return [
        *lines,
        *runner,
        f'  --launcher slurm --launcher_args "{" ".join(step)}" \\',
        f'  "$({name} -c "import cluster.rank; print(cluster.rank.__file__)")" "$attempt" "${{command[@]}}"',
    ]


def _is_pdsh(job: Job) -> bool:
    return job.launcher == "pdsh"


def _tasks(per_node: int) -> list[str]:
    count = "${#hosts[@]}" if per_node == 1 else f"$((${{#hosts[@]}} * {per_node}))"
    return ["--nodes=${#hosts[@]}", f"--ntasks={count}", f"--ntasks-per-node={per_node}"]


def _step(job: Job, ranks_per_task: int) -> list[str]:
    """Options of srun. It waits for every rank: those that are left when one has ended may be saving."""
    cpus = ranks_per_task * (job.cpus_per_process or 1)
    return [*([f"--cpus-per-task={cpus}"] if cpus > 1 else []), "--wait=0", "--kill-on-bad-exit=0"]


def _container(job: Job, overrides: list[str]) -> list[str]:
    """Options of Pyxis. What the run reads and writes has the same path inside."""
    mounts = list(dict.fromkeys(_folders(job, overrides)))
    for path in mounts:
        if re.search("[,:]", path):
            raise JobError(f"A container cannot be given {path}, for its comma or colon: use another folder.")
    names = ["MASTER_ADDR", "MASTER_PORT", *exports(job)]
    return [
        f"--container-image={shlex.quote(job.container)}",
        f"--container-mounts={shlex.quote(','.join(f'{path}:{path}' for path in mounts))}",
        f"--container-workdir={shlex.quote(str(Path.cwd()))}",
        f"--container-env={','.join(names)}",  # ours, where the image sets them too
    ]


def _folders(job: Job, overrides: list[str]) -> Iterator[str]:
    yield str(Path.cwd())
    for folder in (job.log_folder, run_folder(job, overrides)):
        if not folder.absolute().is_relative_to(Path.cwd()):
            yield str(folder.absolute())
    named = [*_strings(tomllib.loads(Path(job.run).read_text(encoding="utf-8"))), *overrides]
    for word in named:
        for path in re.findall(r"(?:^|[=\"'\[, ])(/[^\"'\],]+)", word):
            if Path(path).exists() and not Path(path).is_relative_to(Path.cwd()):
                yield path


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
