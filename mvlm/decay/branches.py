"""Branch runs: a trunk's learning rate decays to zero from several of its checkpoints, each in its own run folder.

A branch resumes the trunk's checkpoint, optimizer moments and data position included, by `checkpoint.resume`; the
trunk's folder is only read. Where each branch ends is where a run of that length would have ended.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.checkpoint.description import CONFIG, DEEPSPEED, RUN_JSON, STAGES, described_in, is_at_end
from mvlm.checkpoint.layout import (
    CHECKPOINTS,
    INDEX,
    STATE,
    candidates,
    has_checkpoints,
    step_folders,
    step_name,
    step_of,
)
from mvlm.config.load import dump_config, load_stored_config
from mvlm.config.schema import Optim
from mvlm.config.stages import load_stored_stages
from mvlm.config.toml import as_toml
from mvlm.errors import UserError
from mvlm.report.facts import RunFacts, read_facts
from mvlm.runtime.chain import ChainStep
from mvlm.runtime.storage import write_durably

OWNED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
"""Keys that a run adds to its DeepSpeed JSON, derived from its ranks and its TOML."""
FIXED = (
    *("run.dir", "train.steps", "train.pairs", "train.epochs"),
    *("optim.schedule", "optim.decay_steps", "checkpoint.resume", "eval.patience"),
)
"""Settings of a branch that no override may change: it would be another branch, or never be done."""
LINES = 10
"""Log lines over which a training loss is averaged."""


@dataclass(frozen=True)
class Branch(ChainStep):
    """The decay from one checkpoint.

    Attributes:
        at: the step of the trunk at which it begins.
        steps: the length of the decay.
        out: the folder of all branches.
        launch: the words before `train`, such as `deepspeed --module mvlm`.
        deepspeed: the JSON; "" = the trunk's.
        overrides: of the trunk's configuration, as key=value.
    """

    trunk: Path
    at: int
    steps: int
    out: Path
    launch: tuple[str, ...]
    deepspeed: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"decay {self.trunk} from step {self.at} in {self.steps} steps"

    @property
    def folder(self) -> Path:
        return self.out / step_name(self.at)

    @property
    def checkpoint(self) -> Path:
        return self.trunk / CHECKPOINTS / step_name(self.at)

    @property
    def toml(self) -> Path:
        return self.out / f"{step_name(self.at)}.toml"

    @property
    def json(self) -> Path:
        return Path(self.deepspeed) if self.deepspeed else self.out / f"{step_name(self.at)}.deepspeed.json"

    def words(self) -> list[str]:
        return [*self.launch, "train", str(self.toml), "--deepspeed_config", str(self.json), *self.overrides]

    def is_done(self) -> bool:
        return self.has_begun() and is_at_end(self.folder, self.at + self.steps)

    def pairs_seen(self) -> int:
        """As counted by its latest checkpoint, since the trunk's global batch may have changed."""
        state = candidates(self.folder).first / STATE
        return int(json.loads(state.read_text(encoding="utf-8"))["samples_seen"])

    def has_begun(self) -> bool:
        """Whether it no longer needs the trunk's checkpoint."""
        return self.toml.exists() and has_checkpoints(self.folder)

    def prepare(self) -> None:
        """Write the branch's TOML and DeepSpeed JSON, unless it has begun, perhaps with other overrides.

        Raises:
            UserError: an override would change what makes it a branch, the trunk has no such checkpoint or its rate is
                not at the peak there, the folder cannot be written, or holds a branch of another length.
        """
        for override in self.overrides:
            if override.partition("=")[0].strip() in FIXED:
                raise UserError(
                    f"{override} cannot be given to branches, since `mvlm decay` sets that itself: leave it out, and "
                    "use --at, --steps and --out to set where they begin, how long they are and where they go."
                )
        if self.has_begun():
            begun = load_stored_config(self.toml).optim.decay_steps
            if begun != self.steps:
                raise UserError(
                    f"{self.folder} decays in {begun} steps and not in {self.steps}: give --steps {begun}, or another "
                    "--out."
                )
            return
        if not (self.checkpoint / INDEX).is_file():
            there = ", ".join(str(step_of(folder)) for folder in reversed(step_folders(self.trunk))) or "none"
            raise UserError(
                f"{self.trunk} has no checkpoint of step {self.at} (it has {there}): give those to --at, and set "
                "checkpoint.keep_every in the next run."
            )
        described = described_in(self.checkpoint)
        optim, first, end = _scheduled(described)
        if optim.schedule not in ("constant", "wsd"):
            raise UserError(
                f"{self.trunk} has optim.schedule = {optim.schedule!r}, and its rate would jump back to the peak "
                "before it decays: give a run with 'constant' or 'wsd'."
            )
        begins = end - optim.fall(end - first)
        if optim.schedule == "wsd" and self.at > begins:
            raise UserError(
                f"{self.trunk} decays from step {begins} to {end}, and from step {self.at} its rate would jump back to "
                "the peak before it decays again: give --at other steps."
            )
        config = load_stored_config(described / CONFIG, self._decaying())
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_durably(self.toml, dump_config(config))
            if not self.deepspeed:
                content = json.loads((described / DEEPSPEED).read_text(encoding="utf-8"))
                write_durably(self.json, json.dumps({k: v for k, v in content.items() if k not in OWNED}, indent=1))
        except OSError as error:
            raise UserError(f"{self.out} cannot be written ({error}): give --out another place.") from None

    def _decaying(self) -> list[str]:
        """Overrides of the trunk's configuration: a decay to zero at the end that no early stop cuts off, and nothing
        that would write into the trunk's folder."""
        settings = {
            "run.dir": str(self.folder),
            "train.steps": self.at + self.steps,
            "optim.schedule": "wsd",
            "optim.decay_steps": self.steps,
            "optim.floor": 0.0,
            "checkpoint.resume": str(self.checkpoint),
            "checkpoint.mirror": "",
            "checkpoint.peers": 0,
            "eval.patience": 0,
        }
        return [f"{key}={as_toml(value)}" for key, value in settings.items()]


def _scheduled(described: Path) -> tuple[Optim, int, int]:
    """The schedule of a checkpoint's learning rate: its settings, and the steps at which it begins and ends."""
    facts = json.loads((described / RUN_JSON).read_text(encoding="utf-8"))
    if "stages" not in facts:
        return load_stored_config(described / CONFIG).optim, 0, facts["steps"]
    sections, stages = facts["stages"], load_stored_stages(described / STAGES)
    head, last = stages.head(facts["stage"]), stages.last_of(facts["stage"])
    # A stage appended since the run was described does not count.
    return stages.config(head).optim, sections[head]["first"], sections[min(last, len(sections) - 1)]["end"]


def gather(trunk: Path, branches: Sequence[Branch]) -> dict[str, Any]:
    """The results of finished branches, beside those of the trunk where each branch began.

    Returns:
        `metric`, compared besides the loss, or None if nothing was evaluated; `trunk`, its curve as [step, value];
        `branches`, each with the steps `at` and `end`, `pairs` seen at its end, and `trunk` and `decayed`: the mean
        loss of the last log lines, and every number of the evaluation at exactly that step.
    """
    facts, ends = read_facts(trunk), [read_facts(branch.folder) for branch in branches]
    metric = _metric(ends)
    found = [
        {
            "at": branch.at,
            "end": branch.at + branch.steps,
            "pairs": branch.pairs_seen(),
            "trunk": _numbers_at(facts, branch.at),
            "decayed": _numbers_at(end, branch.at + branch.steps),
        }
        for branch, end in zip(branches, ends, strict=True)
    ]
    curve = [list(point) for point in zip(*facts.curve(metric or "loss"), strict=True)]
    return {"run": str(trunk), "metric": metric, "trunk": curve, "branches": found}


def _numbers_at(facts: RunFacts, step: int) -> dict[str, float]:
    """The mean loss of the last log lines up to a step, and the evaluation at that step."""
    logged, losses = facts.curve("loss")
    before = [loss for at, loss in zip(logged, losses, strict=True) if at <= step][-LINES:]
    line = facts.metrics.get(step, {})
    evaluated = {name: value for name, value in line.items() if name.startswith("eval/") and value is not None}
    return ({"loss": statistics.fmean(before)} if before else {}) | evaluated


def _metric(runs: Sequence[RunFacts]) -> str | None:
    """The first metric that all runs have."""
    for name in ("eval/mean_recall", "eval/accuracy"):
        if all(run.curve(name)[0] for run in runs):
            return name
    return None


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot the trunk's curve and the decay from each of its checkpoints, as a PNG."""
    from matplotlib.figure import Figure

    name = result["metric"] or "loss"
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    if result["trunk"]:
        axes.plot(*zip(*result["trunk"], strict=True), color="0.55", linewidth=1.2, label="trunk")
    for branch in result["branches"]:
        before, after = branch["trunk"].get(name), branch["decayed"].get(name)
        if before is not None and after is not None:
            axes.plot([branch["at"], branch["end"]], [before, after], "--", color="tab:blue", linewidth=0.9)
    ends = [(b["end"], b["decayed"][name]) for b in result["branches"] if name in b["decayed"]]
    if ends:
        axes.plot(*zip(*ends, strict=True), "o-", color="tab:blue", label="decayed to zero")
    axes.set_xlabel("updates")
    axes.set_ylabel(name)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
