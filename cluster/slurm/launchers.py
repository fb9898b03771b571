"""What starts the ranks within a SLURM job: srun itself, torchrun, or DeepSpeed's launcher over srun or pdsh."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

from mvlm.config.toml import read_tables, strings_in
from mvlm.errors import UserError

from .. import environment, rank
from ..environment import python
from ..job import Job, run_folder

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
DEEPSPEED = """\
  variables=( # not exported: DeepSpeed would log some of them, in quotes that stay or cut off at a comma
    "PATH=$PATH" "SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-}" ${PYTHONPATH:+"PYTHONPATH=$PYTHONPATH"}
    @@variables
  )
  (umask 077 && printf "%s\\0" env "${variables[@]}" "${command[@]}" >"$attempt/command")
  printf "%s slots=@@ranks\\n" "${hosts[@]}" >"$attempt/hostfile"
  @@python -m deepspeed.launcher.runner --force_multi --no_ssh_check --hostfile "$attempt/hostfile" \\
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \\
"""


@dataclass(frozen=True)
class Launcher:
    """
    Attributes:
        launch: bash that runs the ranks to their end, using `command`, `attempt`, `hosts` and MASTER_*.
        stop: bash that has them save and end.
        by_node: srun starts one process per node, which starts the ranks.
        enters_containers: it can start the ranks in a container.
        exports: the ranks get job.environment because the script exports it.
    """

    launch: str
    stop: str = STOP_STEPS
    by_node: bool = False
    enters_containers: bool = False
    exports: bool = True


LAUNCHERS = {
    "srun": Launcher(
        """\
  srun --nodes=${#hosts[@]} --ntasks=@@tasks --ntasks-per-node=@@ranks \\
    @@options \\
    @@python -m @@rank "$attempt" "${command[@]}\"""",
        enters_containers=True,
    ),
    "torchrun": Launcher(  # it would die of USR1
        """\
  srun --nodes=${#hosts[@]} --ntasks=${#hosts[@]} --ntasks-per-node=1 \\
    @@options \\
    bash -c 'trap "" USR1; PET_NODE_RANK=$SLURM_NODEID exec "$@"' torchrun \\
    @@python -m torch.distributed.run --nnodes ${#hosts[@]} \\
    --nproc-per-node @@ranks --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \\
    -m @@rank "$attempt" "${command[@]}\"""",
        by_node=True,
        enters_containers=True,
    ),
    "deepspeed": Launcher(
        DEEPSPEED
        + """\
    --launcher slurm --launcher_args "--ntasks-per-node=@@ranks @@options" \\
    "$(@@python -c "import @@rank as rank; print(rank.__file__)")" "$attempt\"""",
        exports=False,
    ),
    "pdsh": Launcher(
        DEEPSPEED
        + """\
    --launcher pdsh --no_local_rank --module @@rank "$attempt\"""",
        stop=STOP_RANK,
        exports=False,
    ),
}


class BashTemplate(Template):
    """A template of bash, which has no @@ itself."""

    delimiter = "@@"


def check(job: Job) -> None:
    """Raises `UserError` if the launcher cannot do what the job asks for."""
    if job.container and not LAUNCHERS[job.launcher].enters_containers:
        raise UserError(
            f"job.container is {job.container!r}, which the launcher {job.launcher} cannot enter: "
            'set job.launcher to "srun" or "torchrun".'
        )
    if job.launcher == "pdsh":  # a remote shell reads them, and DeepSpeed puts no quotes around them
        for path in (Path.cwd(), job.log_folder, python(job)):
            if not UNQUOTED.fullmatch(str(path)):
                raise UserError(f"The launcher pdsh cannot work with the path {str(path)!r}: use plain letters in it.")


def variables(job: Job) -> dict[str, str]:
    """The variables that the ranks are given."""
    return _defaults(job) | job.environment


def exports(job: Job) -> dict[str, str]:
    """Those of them that the script exports."""
    return variables(job) if LAUNCHERS[job.launcher].exports else _defaults(job)


def assignment(name: str, value: str) -> str:
    """NAME=value as a word of bash; for a secret by reference, the value is the variable that holds it."""
    other = environment.referred(value)
    return f"{name}=" + (f'"${other}"' if other else shlex.quote(value))


def _defaults(job: Job) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(job.cpus_per_process)} if job.cpus_per_process else {}
    return {"PYTHONUNBUFFERED": "1"} | threads | environment.defaults(job)


def launch(job: Job, overrides: list[str]) -> str:
    """Lines of bash that run the ranks to their end.

    Args:
        overrides: of all its runs; a container is given the folders that they name.
    """
    launcher, ranks = LAUNCHERS[job.launcher], job.ranks_per_node
    cpus = (job.cpus_per_process or 1) * (ranks if launcher.by_node else 1)
    # srun waits for every rank: those that are left when one has ended may be saving
    step = [*([f"--cpus-per-task={cpus}"] if cpus > 1 else []), *_binding(job), "--wait=0", "--kill-on-bad-exit=0"]
    step.append("--export=ALL")  # what the script exports, even if sbatch was told --export=NONE
    container = _container(job, overrides) if job.container else []
    return BashTemplate(launcher.launch).substitute(
        ranks=ranks,
        rank=rank.__name__,
        tasks="${#hosts[@]}" if ranks == 1 else f"$((${{#hosts[@]}} * {ranks}))",
        options=" \\\n    ".join([" ".join(step), *container]),
        python=python(job).name,
        variables="\n    ".join(assignment(name, value) for name, value in variables(job).items()),
    )


def _binding(job: Job) -> list[str]:
    """Options that put ranks 0, 1, ... on the first cores of the first socket and so on, as GPUs are numbered on most
    nodes, and their memory with them. All GPUs stay visible to each rank, so that NCCL can use NVLink between them."""
    if not job.gpus_per_node:
        return []
    by_node, per_task = LAUNCHERS[job.launcher].by_node, job.gpu_request == "gpus-per-task"
    seen = [*([f"--gpus-per-task={job.gpus_per_node}"] if by_node else []), "--gpu-bind=none"] if per_task else []
    if by_node:  # the one task has all cores, and each rank takes those near its GPU
        return [*seen, "--cpu-bind=none"]
    return [*seen, "--distribution=block:block", "--cpu-bind=cores", "--mem-bind=local"]


def _container(job: Job, overrides: list[str]) -> list[str]:
    """Options of Pyxis. What the run reads and writes has the same path inside."""
    mounts = list(dict.fromkeys(_folders(job, overrides)))
    for path in mounts:
        if re.search("[,:]", path):
            raise UserError(f"A container cannot be given {path}, because of its comma or colon: use another folder.")
    names = ["MASTER_ADDR", "MASTER_PORT", *exports(job)]
    return [
        f"--container-image={shlex.quote(job.container)}",
        f"--container-mounts={shlex.quote(','.join(f'{path}:{path}' for path in mounts))}",
        f"--container-workdir={shlex.quote(str(Path.cwd()))}",
        f"--container-env={','.join(names)}",  # ours, even if the image sets them too
    ]


def _folders(job: Job, overrides: list[str]) -> Iterator[str]:
    yield str(Path.cwd())
    for path in (job.log_folder, run_folder(job, overrides)):
        if not path.absolute().is_relative_to(Path.cwd()):
            yield str(path.absolute())
    given = list(job.command) or strings_in(read_tables(job.run, "run configuration"))
    for word in [*given, *overrides]:
        for path in re.findall(r"(?:^|[=\"'\[, ])(/[^\"'\],]+)", word):
            if Path(path).exists() and not Path(path).is_relative_to(Path.cwd()):
                yield path
