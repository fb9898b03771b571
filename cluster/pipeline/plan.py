"""Hours and cost of a pipeline: training by `mvlm plan`, all else as long as it took before, or may take at most."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mvlm.config.shipped import find_file
from mvlm.errors import UserError

from ..environment import inherited
from ..job import parse_time
from ..ray.client import import_path
from ..record import RECORD, JobRecord, read_record
from .file import TRAINING, PipelineStep
from .graph import Graph
from .proof import rows
from .submission import Submission

UNKNOWN = "–"


@dataclass(frozen=True)
class StepPlan:
    """What a step takes.

    Attributes:
        hours: None if nothing is known.
        source: where the hours come from.
        cost: by the prices of [pipeline].
    """

    name: str
    hours: float | None
    source: str
    cost: float


def plans(graph: Graph, submission: Submission) -> list[StepPlan]:
    """The plans of the steps that would run.

    Raises:
        UserError: `mvlm plan` refuses a run.
    """
    found = []
    for name in submission.queued:
        step = graph.pipeline.steps[name]
        hours, paid, source = _hours(graph, submission, step)
        prices = graph.pipeline.settings
        an_hour = step.nodes * (step.gpus * prices.gpu_hour + step.cpus * prices.core_hour)
        found.append(StepPlan(name, hours, source, paid * an_hour))
    return found


def as_text(graph: Graph, found: list[StepPlan]) -> str:
    """A line per step, and one for the whole: hours along the longest chain of steps, and the total cost."""
    if not found:
        return "nothing: every step is done and unchanged"
    width = max(len(plan.name) for plan in found)
    lines = [f"{plan.name:{width}}  {_number(plan.hours):>8} h  {plan.cost:>10,.2f}  {plan.source}" for plan in found]
    unknown = sum(plan.hours is None for plan in found)
    rest = f", without {unknown} of {len(found)} steps, about which nothing is known" if unknown else ""
    total = f"{sum(plan.cost for plan in found):,.2f}"
    return "\n".join([*lines, f"the whole: {_number(longest(graph, found))} hours, which cost {total}{rest}"])


def longest(graph: Graph, found: list[StepPlan]) -> float:
    """Hours of the chain of steps that takes longest, as if there were room for all others beside it."""
    hours = {plan.name: plan.hours or 0.0 for plan in found}
    ends: dict[str, float] = {}
    for name in graph.order:
        ends[name] = hours.get(name, 0.0) + max((ends[need] for need in graph.needs[name]), default=0.0)
    return max(ends.values(), default=0.0)


def _hours(graph: Graph, submission: Submission, step: PipelineStep) -> tuple[float | None, float, str]:
    """Hours until the step is done, hours that are paid for (more if it has parts), and where they come from."""
    if step.kind in TRAINING and graph.pipeline.settings.gpu and step.gpus:
        hours = _planned(graph, step)
        return hours, hours, f"mvlm plan, {step.nodes * step.gpus} x {graph.pipeline.settings.gpu}"
    folder = submission.folder(step.name)
    if (folder / RECORD).exists():
        whole = read_record(folder)
        if whole.attempts and whole.attempts[-1].exit_code == 0:
            parts = [read_record(path.parent) for path in folder.glob(f"part-*/{RECORD}")]
            took = [_took(part) for part in parts if part.job_id == whole.job_id]
            return _took(whole) + max(took, default=0.0), _took(whole) + sum(took), "as before"
    if seconds := parse_time(step.time):
        return seconds / 3600, seconds / 3600 * step.parts, "its time limit"
    return None, 0.0, f"nothing: {step.name}.time would bound it"


def _took(record: JobRecord) -> float:
    """Hours of all attempts that have ended: one after a preemption continues the work."""
    return sum(one.ended - one.started for one in record.attempts if one.ended) / 3600


def _planned(graph: Graph, step: PipelineStep) -> float:
    """Hours of training by `mvlm plan`, for `pairs` if given, else for the shards that there are."""
    known = [count for path in graph.reads[step.name] if "://" not in path and (count := rows(path))]
    pairs = step.pairs or sum(known)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        words = [sys.executable, "-m", "mvlm", "plan", str(find_file(step.run, "configs"))]
        words += [
            "--deepspeed_config",
            str(find_file(step.deepspeed, "ds_configs")),
            "--gpu",
            graph.pipeline.settings.gpu,
        ]
        words += ["--nodes", str(step.nodes), "--gpus-per-node", str(step.gpus), "--json", str(file)]
        words += [*(["--pairs", str(pairs)] if pairs else []), *step.overrides, "data.train=[]", "data.eval=[]"]
        environment = inherited() | {"PYTHONPATH": import_path()}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise UserError(f"{step.name} cannot be planned: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        return float(json.loads(file.read_text(encoding="utf-8"))["hours"])


def _number(hours: float | None) -> str:
    return UNKNOWN if hours is None else f"{hours:,.1f}"
