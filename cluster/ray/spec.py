"""What submit leaves on the shared disk for the processes of a job on Ray: the job, and where it was given."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.environment import added, python
from cluster.job import Job, Sweep, run_folder
from cluster.record import write_private

FILE = "ray.json"


@dataclass(frozen=True)
class Spec:
    """All that a driver needs; every path is absolute, and the same on all nodes."""

    job: Job
    overrides: list[str]
    directory: str  # where the command was given; paths in the job and in overrides count from it
    python: str
    run_folder: str
    logs: str

    @classmethod
    def of(cls, job: Job, overrides: list[str]) -> Spec:
        run = run_folder(job, overrides).absolute()
        return cls(job, overrides, str(Path.cwd()), str(python(job)), str(run), str(job.log_folder.absolute()))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Spec:
        job = dict(fields["job"])
        sweep = job.pop("sweep")
        return cls(**fields | {"job": Job(**job, sweep=Sweep(**sweep) if sweep else None)})

    @classmethod
    def load(cls, path: Path) -> Spec:
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self), indent=1))

    def command(self) -> list[str]:
        """The argument list of a rank."""
        job = self.job
        return [self.python, "-m", "mvlm", "train", job.run, "--deepspeed_config", job.deepspeed, *self.overrides]

    def environment(self) -> dict[str, str]:
        """What the job adds to the environment of every rank."""
        return added(self.job)

    def resources(self) -> dict[str, float]:
        """What Ray reserves for each rank."""
        gpu = {"GPU": 1.0} if self.job.gpus_per_node else {}
        return {"CPU": float(self.job.cpus_per_process or 1)} | gpu

    def ranks(self) -> tuple[int, int]:
        """At least and at most."""
        job = self.job
        return (job.min_nodes or job.nodes) * job.ranks_per_node, job.nodes * job.ranks_per_node
