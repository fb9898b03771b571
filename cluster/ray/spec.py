"""What submit leaves on the shared disk for the processes of a job on Ray: the job, and where it was given."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mvlm.config.toml import build
from mvlm.errors import Mistakes

from ..environment import python
from ..job import Job, Sweep, run_folder
from ..record import write_private

FILE = "ray.json"
TUNE = "tune"  # folder beside it, of a sweep that has begun


@dataclass(frozen=True)
class RayJobSpec:
    """All that a driver needs; every path is absolute, and the same on all nodes."""

    job: Job
    words: list[str]  # after `mvlm`, of each rank
    directory: str  # where the command was given; paths in the job and in overrides count from it
    python: str
    run_folder: str
    logs: str

    @classmethod
    def of(cls, job: Job, overrides: list[str]) -> RayJobSpec:
        run, logs = str(run_folder(job, overrides).absolute()), str(job.log_folder.absolute())
        return cls(job, job.words(overrides), str(Path.cwd()), str(python(job)), run, logs)

    @classmethod
    def load(cls, path: Path) -> RayJobSpec:
        fields = json.loads(path.read_text(encoding="utf-8"))
        given, sweep = fields["job"], fields["job"].pop("sweep")
        job = build(Job, given, str(path), "job.", Mistakes())
        return cls(**fields | {"job": replace(job, sweep=Sweep(**sweep) if sweep else None)})

    def save(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self), indent=1))

    def command(self) -> list[str]:
        """The argument list of a rank."""
        return [self.python, "-m", "mvlm", *self.words]

    def resources(self) -> dict[str, float]:
        """What Ray reserves for each rank."""
        gpu = {"GPU": 1.0} if self.job.gpus_per_node else {}
        return {"CPU": float(self.job.cpus_per_process or 1)} | gpu

    def ranks(self) -> tuple[int, int]:
        """The least and the most ranks."""
        job = self.job
        return (job.min_nodes or job.nodes) * job.ranks_per_node, job.nodes * job.ranks_per_node
