"""What a submission leaves on disk: which steps are queued, what each runs and when it counts as done."""

from __future__ import annotations

import copy
import json
import shutil
import socket
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.log import logger

from .. import processes
from ..logs import next_attempt
from ..record import JobRecord, keep_files, read_record, write_private
from .file import BY_RUN, is_pipeline, load_pipeline, pipeline_from_tables
from .graph import Graph
from .proof import Proof, digest, is_proven, keys, outputs, proof_path, read_proof, write_proof
from .words import JOB, as_job

FILE, RECORD, OLD = "pipeline.json", "job.json", ".old"
MADE_ONCE = ("shard", "filter", "tokenizer", "export")
"""Kinds whose commands refuse to make an output that exists."""
log = logger("cluster")


@dataclass
class QueuedStep:
    """A step of a submission that is to run.

    Attributes:
        needs: steps of the same submission that it waits for.
        first: number of the first attempt at its job.
        jobs: the scheduler's ids; the last is that of the step as a whole.
    """

    key: str
    needs: list[str]
    first: int
    jobs: list[str] = field(default_factory=list)


@dataclass
class Submission:
    """One submission of a pipeline; `load` finds the newest.

    Attributes:
        path, overrides, directory: as it was given, so that `rerun` can read it again.
        tables: what was in the file then, with overrides applied: the file may be edited while steps wait. Once
            prepared, they name copies of the files of its runs.
        order: all steps, each after those that it waits for.
        queued: those that run, by name; the others are proven unchanged.
        host, pid, pid_started: of the driver of a local one.
        job: of the driver on Ray, and its server.
    """

    path: str
    overrides: list[str]
    directory: str
    backend: str
    logs: str
    tables: dict[str, Any]
    order: list[str]
    queued: dict[str, QueuedStep]
    host: str = field(default_factory=socket.gethostname)
    pid: int = 0
    pid_started: str | None = None
    job: str = ""
    server: str = ""

    def save(self) -> None:
        write_private(Path(self.logs) / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, logs: Path) -> Submission:
        """Raises `UserError` if there is none, or it cannot be read."""
        try:
            fields = json.loads((logs / FILE).read_text(encoding="utf-8"))
            queued = {name: QueuedStep(**step) for name, step in fields.pop("queued").items()}
            return cls(**fields, queued=queued)
        except FileNotFoundError:
            raise UserError(f"No pipeline has been submitted with the logs {logs}: submit it first.") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{logs / FILE} is damaged ({error}): move it away and submit again.") from None

    def graph(self) -> Graph:
        """The graph as submitted; paths count from the folder of the submission, which must be the current one."""
        return Graph(pipeline_from_tables(self.tables, self.path))

    def folder(self, name: str) -> Path:
        return Path(self.logs) / name

    def record(self, name: str) -> JobRecord | None:
        """What the step's process has noted; None before it begins with its present key."""
        if not (self.folder(name) / RECORD).exists():
            return None
        record = read_record(self.folder(name))
        return record if record.job_id == self.queued[name].key else None

    @property
    def is_driven(self) -> bool:
        """Whether its driver is alive on this machine."""
        return self.host == socket.gethostname() and processes.is_alive(self.pid, self.pid_started)


def draft(graph: Graph, overrides: list[str], backend: str, forced: Collection[str] = ()) -> Submission:
    """What a submission would be: everything but what is proven unchanged.

    Args:
        forced: steps to do again with all that depends on them, proven or not.
    """
    pipeline, all_keys = graph.pipeline, keys(graph)
    again = graph.with_dependents(forced)
    logs = pipeline.logs.absolute()
    queued: dict[str, QueuedStep] = {}
    for name in graph.order:
        needs = [other for other in graph.needs[name] if other in queued]
        if name in again or not is_proven(graph, name, all_keys[name]):
            queued[name] = QueuedStep(all_keys[name], needs, next_attempt(logs / name / JOB))
    place = str(Path.cwd())
    tables = copy.deepcopy(pipeline.tables)
    return Submission(pipeline.path, overrides, place, backend, str(logs), tables, graph.order, queued)


def prepare(graph: Graph, submission: Submission, forced: Collection[str] = ()) -> None:
    """Note on disk that the queued steps begin: move outputs of other settings aside, and remove old records.

    From then on, the steps run by the submission's own graph.

    Raises:
        UserError: an output in a store was made with other settings; nothing has been moved then.
    """
    again = graph.with_dependents(forced)
    stale = []
    begun = {name: queued for name, queued in submission.queued.items() if not queued.jobs}  # the others are in a queue
    for name, queued in begun.items():
        proof = read_proof(proof_path(graph, name))
        if proof and (proof.key != queued.key or (proof.done and name in again) or is_altered(graph, name, proof)):
            stale.append(name)
    for name in stale:
        for path in own_outputs(graph, name):
            if "://" in path:
                raise UserError(
                    f"{name}: {path} was made with other settings: delete it, or give {name}.writes another place."
                )
    for name, queued in begun.items():
        for path in own_outputs(graph, name) if name in stale else ():
            if Path(path).exists():
                _move_aside(Path(path))
                log.info(f"{name}: what was made with other settings is now {path}{OLD}")
        record = submission.record(name)
        if record is None or not processes.is_alive(record.pid, record.pid_started):  # else it is waited for
            (submission.folder(name) / RECORD).unlink(missing_ok=True)
        submission.folder(name).mkdir(parents=True, exist_ok=True)
        proof = None if name in stale else read_proof(proof_path(graph, name))
        own = proof.own if proof else not any(_lies_there(path) for path in own_outputs(graph, name))
        write_proof(proof_path(graph, name), Proof(queued.key, own, logs=submission.logs))
    _keep_files_of_runs(graph, submission)


def _keep_files_of_runs(graph: Graph, submission: Submission) -> None:
    """Copy files that queued runs use, which may be edited while they wait; those of one in a queue stay the same."""
    for name in submission.queued:
        step, folder = graph.pipeline.steps[name], submission.folder(name) / JOB
        if step.kind in BY_RUN:
            folder.mkdir(parents=True, exist_ok=True)
            job = as_job(graph.pipeline, step, submission.backend)
            keep_files(job)
            submission.tables[name]["run"], submission.tables[name]["deepspeed"] = job.kept


def is_made(graph: Graph, submission: Submission, name: str) -> bool:
    """Whether a step has made all its outputs but ended before it could say so, as on a full disk.

    Its command, one of those that name their output only when it is complete, would refuse to make it again.
    """
    step, proof = graph.pipeline.steps[name], read_proof(proof_path(graph, name))
    if step.kind not in MADE_ONCE or own_outputs(graph, name) != list(step.writes):
        return False
    in_its_course = proof is not None and proof.own and proof.key == submission.queued[name].key
    return in_its_course and all(outputs(step).values())


def is_altered(graph: Graph, name: str, proof: Proof) -> bool:
    """Whether somebody else has changed what a step had finished."""
    return proof.done and proof.outputs != outputs(graph.pipeline.steps[name])


def settle(graph: Graph, submission: Submission, name: str) -> None:
    """Write the proof of a step that has ended without an error.

    Raises:
        UserError: an output is not there, or not whole.
    """
    step = graph.pipeline.steps[name]
    found = outputs(step)
    for path, state in found.items():
        if not state:
            raise UserError(f"{name} has ended without an error, and {path} is not there or not whole: see its log.")
    write_proof(proof_path(graph, name), Proof(submission.queued[name].key, done=True, outputs=found))


def is_settled(graph: Graph, submission: Submission, name: str) -> bool:
    proof = read_proof(proof_path(graph, name))
    return proof is not None and proof.done and proof.key == submission.queued[name].key


def find_pipeline(path: str) -> Path | None:
    """The logs of the pipeline that a file or a folder is; None if it is not a pipeline."""
    given = Path(path)
    if given.is_dir():
        return next((folder for folder in (given, given / "pipeline") if (folder / FILE).is_file()), None)
    return load_pipeline(path).logs.absolute() if is_pipeline(path) else None


def own_outputs(graph: Graph, name: str) -> list[str]:
    """What a step makes; not what it adds to."""
    return [path for path in graph.pipeline.steps[name].writes if path not in graph.reads[name]]


def _lies_there(path: str) -> bool:
    return digest(path) is not None if "://" in path else Path(path).exists()


def _move_aside(path: Path) -> None:
    old = path.with_name(path.name + OLD)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
    path.rename(old)
