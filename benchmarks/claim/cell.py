"""A cell: one training run, measured, as one line of JSON."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from benchmarks.claim.corpora import ROOT, Corpus
from benchmarks.claim.cost import equal_compute
from benchmarks.claim.grid import ALL_FOUR, COMPUTE, OBJECTIVES, SCENES, TUNES, Cell
from benchmarks.claim.scores import measure, measure_answers, pack
from benchmarks.kept import Record, code_version
from mvlm.checkpoint.description import METRICS
from mvlm.checkpoint.layout import MOMENTS, find_checkpoint
from mvlm.config.load import given_keys, load_config
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.pretrained.runs import load_run, load_task_run
from mvlm.runtime import dist
from mvlm.runtime.jsonl import JsonLinesTail
from mvlm.training.fit.run import train
from mvlm.training.health.signals import StopRequests

CELLS = Path(__file__).parent / "results/cells.jsonl"
TUNED_FOR = 3  # fine-tuning takes a third of pretraining's updates at equal steps, even after equal compute


@dataclass(frozen=True)
class Size:
    """How large the grid's models are.

    Attributes:
        scenes, pictures: TOMLs of the synthetic world and of all other corpora.
        deepspeed: a DeepSpeed JSON; without a GPU, ON_CPU is used instead.
    """

    name: str
    scenes: str
    pictures: str
    deepspeed: str

    def toml(self, corpus: str) -> str:
        return self.scenes if corpus == SCENES else self.pictures


_FOLDER = "benchmarks/claim/sizes"
ON_CPU = f"{_FOLDER}/cpu.json"  # stage 0: on one rank, ZeRO-1's own work is an eighth of a small model's step
SIZES = {
    "small": Size("small", f"{_FOLDER}/small_scenes.toml", f"{_FOLDER}/small_pictures.toml", ON_CPU),
    "gpu": Size("gpu", f"{_FOLDER}/gpu_scenes.toml", f"{_FOLDER}/gpu_pictures.toml", "ds_configs/zero1.json"),
    "paper": Size("paper", "mvlm/configs/base.toml", "mvlm/configs/base.toml", "ds_configs/zero1.json"),
}
"""`paper` is the paper's own model and recipe, which needs `--set train.steps=N`."""


@dataclass(frozen=True)
class Plan:
    """How a cell will be run.

    Attributes:
        overrides: of the size's TOML, without the folders.
        base: the cell that is fine-tuned; None = this one is pretrained.
        settings: a hash of TOML, overrides and data: a cell run with others is a different one.
    """

    cell: Cell
    size: Size
    corpus: Corpus
    run: Path
    overrides: tuple[str, ...]
    settings: str
    base: Plan | None = None

    @property
    def toml(self) -> str:
        return str(ROOT / self.size.toml(self.cell.corpus))

    @property
    def folders(self) -> tuple[str, ...]:
        data = f"data.train={json.dumps(self.corpus.train(self.cell.share, self.cell.tune))}"
        return f"run.dir={self.run}", data, *([f"checkpoint.init={self.base.run}"] if self.base else [])

    def beside(self, ending: str) -> Path:
        """A path next to the run's folder."""
        return self.run.with_name(self.run.name + ending)

    @property
    def words(self) -> list[str]:
        """All overrides, as `mvlm train` takes them."""
        return [*self.folders, *self.overrides]


def plan(cell: Cell, size: Size, corpus: Corpus, folder: Path, extra: tuple[str, ...] = ()) -> Plan:
    """Args: extra: further overrides, for every cell."""
    overrides = [f"run.seed={cell.seed}", *extra, *(TUNES[cell.tune] if cell.tune else OBJECTIVES[cell.objective])]
    toml = str(ROOT / size.toml(cell.corpus))
    base = plan(replace(cell, tune=""), size, corpus, folder, extra) if cell.tune else None
    if base:
        overrides.append(f"train.steps={max(2, load_config(toml, extra).train.steps // TUNED_FOR)}")
    elif cell.budget == COMPUTE:
        steps = _equal_compute(toml, tuple(corpus.train(cell.share)), extra, cell.objective)
        overrides.append(f"train.steps={steps}")
    config = load_config(toml, overrides)
    if not config.train.steps:
        raise UserError(f"{toml} counts epochs, so that less data would mean fewer updates: add --set train.steps=N.")
    task = config.task.corpus
    parts = (*corpus.train(cell.share, cell.tune), corpus.eval(cell.tune))
    fingerprints = [Mixture([part], task=task).fingerprint for part in parts]
    tables = tomllib.loads(Path(toml).read_text(encoding="utf-8"))
    decisive = [tables, overrides, fingerprints, base.settings if base else ""]
    settings = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    run = folder / size.name / run_name(cell, settings)
    return Plan(cell, size, corpus, run, tuple(overrides), settings, base)


def run_name(cell: Cell, settings: str) -> str:
    """The name of the training run's folder."""
    return f"{cell.name.replace('/', '-')}-{settings}"


@lru_cache
def _equal_compute(toml: str, train: tuple[str, ...], extra: tuple[str, ...], objective: str) -> int:
    return equal_compute(toml, [f"data.train={json.dumps(train)}", *extra], objective, ALL_FOUR)


@contextmanager
def claimed(run: Path) -> Iterator[bool]:
    """Lock the cell of a run folder; False if another process has it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_name(f"{run.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def trained(planned: Plan) -> bool:
    """Whether the run has reached its last step."""
    return reached(planned.run) == load_config(planned.toml, planned.words).train.steps


def reached(run: Path) -> int:
    """The step of a run's newest checkpoint; 0 if it has none."""
    try:
        checkpoint = find_checkpoint(run)
    except UserError:
        return 0
    return int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])


def train_cell(planned: Plan, stop: StopRequests) -> int:
    """Train in this process, resuming if the run was stopped; returns the exit code of `mvlm train`."""
    if trained(planned):
        return 0
    if planned.base and (code := train_cell(planned.base, stop)):
        return code
    deepspeed = planned.size.deepspeed if dist.uses_cuda() else ON_CPU
    config, given = load_config(planned.toml, planned.words), given_keys(planned.toml, planned.words)
    code = train(config, (str(ROOT / deepspeed), planned.toml), given, stop=stop)
    if code == 0:
        drop_moments(planned.run)
    return code


def drop_moments(run: Path) -> None:
    """Delete the optimizer's moments of a finished run: only resuming would read them."""
    for moments in find_checkpoint(run).glob(f"{MOMENTS}-*"):
        moments.unlink()


def measure_cell(planned: Plan) -> Record:
    """The record of a trained cell."""
    began, device = time.process_time(), dist.device()
    cell = planned.cell
    if cell.tune == "vqa":
        answering = load_task_run(planned.run, "vqa", device)
        steps, (numbers, rows) = answering.step, measure_answers(answering, planned.corpus, device)
    else:
        loaded = load_run(planned.run, device)
        steps, (numbers, rows) = loaded.step, measure(loaded, planned.corpus, device)
    return {
        "cell": cell.kind,
        "seed": cell.seed,
        "size": planned.size.name,
        "toml": planned.size.toml(cell.corpus),
        "overrides": list(planned.overrides),
        "settings": planned.settings,
        "pairs": sum(len(Mixture([part])) for part in planned.corpus.train(cell.share)),
        "steps": steps,
        "code": code_version(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "training_s": round(training_seconds(planned.run), 3),
        "evaluation_cpu_s": round(time.process_time() - began, 1),
        "numbers": {name: round(value, 5) for name, value in numbers.items()},
        "rows": {name: pack(score_N) for name, score_N in rows.items()},
    }


def training_seconds(run: Path) -> float:
    """The time of a run's updates over all its attempts, wherever they ran; without starts, saves and evaluations."""
    lines = [line for line in JsonLinesTail(run / METRICS).new() if "pairs_per_s" in line]
    batch = load_config(run / "config.toml").train.global_batch
    last_steps = [0, *(line["step"] for line in lines)]
    spans = (line["step"] - last for line, last in zip(lines, last_steps, strict=False))
    return sum(span * batch / line["pairs_per_s"] for span, line in zip(spans, lines, strict=True))


def is_done(planned: Plan, records: list[Record]) -> bool:
    """Whether this cell has been measured at this size and with these settings."""
    wanted = (planned.cell.kind, planned.cell.seed, planned.size.name, planned.settings)
    return any((r["cell"], r["seed"], r["size"], r["settings"]) == wanted for r in records)
