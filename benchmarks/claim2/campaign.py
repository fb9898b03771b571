"""Running the campaign: costs, learning rates, the grid and the synthetic world; each cell is kept once measured."""

from __future__ import annotations

import fcntl
import gc
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.claim import cell as claim
from benchmarks.claim.cell import reached
from benchmarks.claim.cost import flops_a_pair, seconds_a_step
from benchmarks.claim.grid import ALL_FOUR, FEW, SCENES, Cell
from benchmarks.claim.run import one_rank, prepare_all
from benchmarks.claim2.cell import Run, deepspeed, measure_cell, settings, train_cell
from benchmarks.claim2.corpus import Icons, prepare
from benchmarks.claim2.grounding import grounding
from benchmarks.claim2.plan import ARMS, CONTRAST, JOINT, PRIMARY_SHARE, IconCell, Size, begun_from, in_turn, rate_cells
from benchmarks.kept import add_record, read_records
from mvlm.config.load import load_config
from mvlm.data.samples.foils import FoilDataset
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import ExitCode, UserError
from mvlm.evaluate.settings import reading_of
from mvlm.pretrained.runs import load_run
from mvlm.runtime import dist
from mvlm.training.health.signals import StopRequests

ROOT, RESULTS = claim.ROOT, Path(__file__).parent / "results"
COSTS, CELLS = "costs.json", "cells.jsonl"
ROUNDS = 5  # in each of which every arm is timed, since other load on the machine comes and goes
TUNE = "vqa"
WAIT_S = 2.0  # between looks at cells that other processes are running

CODE = ("benchmarks", "mvlm", "data_tools", "ds_configs", "docs/claim2.md", ":!benchmarks/*/results/*")
"""What a cell depends on, including the plan."""


class Stopped(Exception):
    """Asked to stop; everything is saved."""


def code_commit(results: Path) -> str:
    """The commit to keep results under: one that has results already, if the code has not changed since.

    Raises:
        UserError: there are uncommitted changes.
    """
    if changed := _git("status", "--porcelain", "--", *CODE).splitlines():
        raise UserError(f"{changed[0][3:]} is not as it was committed: commit first, since every cell names its code.")
    for folder in sorted(results.glob("*/")):
        known = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", folder.name, "HEAD", "--", *CODE])
        if known.returncode == 0:
            return folder.name
    return _git("rev-parse", "--short=12", "HEAD")


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git failed, so run this from a checkout: {done.stderr.strip()}.")
    return done.stdout.rstrip()


@dataclass(frozen=True)
class Campaign:
    """Args:
    shards: as examples/icons/make.sh writes them.
    home: folder for training runs.
    results: the folder that gets a line for each cell.
    """

    size: Size
    shards: Path
    home: Path
    results: Path

    @cached_property
    def icons(self) -> Icons:
        config = load_config(ROOT / self.size.toml, self.size.settings)
        return prepare(self.shards, self.home / "icons", self.size, config.data, config.model.image_size)

    @property
    def cells(self) -> Path:
        return self.results / CELLS

    def records(self) -> dict[str, Any]:
        """Records by cell name; if two processes finished a cell, the first one."""
        found: dict[str, Any] = {}
        for record in read_records(self.cells):
            found.setdefault(record["cell"], record)
        return found

    def costs(self) -> dict[str, dict[str, float]]:
        """By arm: `seconds` and `gflop` per pair, and `steps`, as many as fit into the joint arm's time."""
        found: dict[str, dict[str, float]] = json.loads((self.results / COSTS).read_text(encoding="utf-8"))
        return found

    def measure_costs(self, stop: StopRequests) -> None:
        """Measure once; other processes wait for the result."""
        for folder in (self.results, self.home):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.home / "costs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.results / COSTS).exists():
                found = json.dumps(self._measured_costs(stop), indent=1)
                (self.results / COSTS).write_text(found + "\n", encoding="utf-8")

    def _measured_costs(self, stop: StopRequests) -> dict[str, dict[str, float]]:
        toml, ds_json, folder = ROOT / self.size.toml, deepspeed(self.size), self.home / "costs"
        words = {arm: settings(self.size, self.icons, arm, PRIMARY_SHARE) for arm in ARMS}
        rounds = [
            {arm: seconds_a_step(toml, ds_json, words[arm], folder / arm, stop) for arm in ARMS} for _ in range(ROUNDS)
        ]
        least = {arm: fmean(map(min, zip(*(each[arm] for each in rounds), strict=True))) for arm in ARMS}
        train = load_config(toml, self.size.settings).train
        return {
            arm: {
                "seconds": least[arm] / train.global_batch,
                "gflop": flops_a_pair(str(toml), words[arm]) / 1e9,
                "steps": round(train.steps * least[JOINT] / least[arm]),
            }
            for arm in ARMS
        }

    def rates(self) -> dict[str, float]:
        """The best multiple of the size's learning rate, for each arm whose selection is complete."""
        records, chosen = self.records(), {}
        for arm in ARMS:
            mine = [cell for cell in rate_cells() if cell.arm == arm]
            if all(cell.name in records for cell in mine):
                chosen[arm] = max(mine, key=lambda cell: records[cell.name]["chosen_by"]).rate
        return chosen

    def run_of(self, cell: IconCell) -> Run:
        """How a cell is run; one that selects a rate is half as long."""
        folder, words = self.folder_of(cell), self.size.settings
        if cell.arm == CONTRAST:
            config = load_config(ROOT / self.size.toml, [*words, *self.size.contrast])
            return Run(cell, self.size, self.icons, config.optim.lr, config.train.steps, folder, None)
        steps, factor = int(self.costs()[cell.arm]["steps"]), cell.rate or self.rates()[cell.arm]
        rate = factor * load_config(ROOT / self.size.toml, words).optim.lr
        (begins_with,) = begun_from([cell])
        steps = max(1, steps // 2) if cell.rate else steps
        return Run(cell, self.size, self.icons, rate, steps, folder, self.folder_of(begins_with))

    def folder_of(self, cell: IconCell) -> Path:
        return self.home / cell.name.replace("/", "-")


@dataclass(frozen=True)
class Task:
    """A cell's name, the folder of its run, and the function that trains and measures it."""

    name: str
    folder: Path
    work: Callable[[StopRequests], dict[str, Any]]


def run(campaign: Campaign) -> int:
    """Run whatever cells are missing, in this process; others may share the work. Returns the exit code."""
    stop = StopRequests()  # before there are ranks: the shell that started this may end
    with one_rank():
        campaign.measure_costs(stop)
        try:
            for cells in in_turn(campaign.size):
                _work_through(campaign, [_icon_task(campaign, cell) for cell in cells], stop)
            for tune in ("", TUNE):  # in this order, since what is fine-tuned must have been pretrained
                _work_through(campaign, _scene_tasks(campaign, tune), stop)
        except Stopped:
            return ExitCode.REQUEUE
    return 0


def _work_through(campaign: Campaign, tasks: Sequence[Task], stop: StopRequests) -> None:
    """Do all tasks in order and wait for those that other processes are at, since what follows depends on all."""
    while True:
        worked, known = False, campaign.records()
        if not (left := [task for task in tasks if task.name not in known]):
            return
        for task in left:
            with claim.claimed(task.folder) as mine:
                if not mine or task.name in campaign.records():
                    continue
                print(f"== {task.name}, {len(tasks)} in this part", flush=True)
                add_record(campaign.cells, task.work(stop))
                worked = True
                gc.collect()  # an engine is full of reference cycles: the next cell's would be built beside it
        if stop.signalled:
            raise Stopped
        if not worked:
            time.sleep(WAIT_S)


def _icon_task(campaign: Campaign, cell: IconCell) -> Task:
    def work(stop: StopRequests) -> dict[str, Any]:
        planned = campaign.run_of(cell)
        if cell.arm != CONTRAST:
            _train_beginning(campaign, cell, stop)
        _finished(train_cell(planned, stop))
        return measure_cell(planned)

    return Task(cell.name, campaign.folder_of(cell), work)


def _train_beginning(campaign: Campaign, cell: IconCell, stop: StopRequests) -> None:
    """Train again the run that a cell begins with if it is gone: another machine may have only the records."""
    (start,) = begun_from([cell])
    planned = campaign.run_of(start)
    while reached(planned.folder) < planned.steps:
        with claim.claimed(planned.folder) as mine:
            if mine:
                print(f"== {start.name}, whose run is gone", flush=True)
                _finished(train_cell(planned, stop))
        if not mine:
            time.sleep(WAIT_S)


def _finished(code: int) -> None:
    if code:
        raise Stopped


def _scene_tasks(campaign: Campaign, tune: str) -> list[Task]:
    """Cells on a tenth of the scenes, with the times matched on icons: for foils, recall and grounding, or questions if
    fine-tuned."""
    size, costs = campaign.size, campaign.costs()
    corpus = prepare_all({SCENES: ""}, campaign.home)[SCENES]
    scenes = claim.SIZES[size.scenes]
    steps = load_config(ROOT / scenes.toml(SCENES), size.scene_settings).train.steps
    tasks = []
    for seed, arm in product(range(size.seeds), ARMS):
        ratio = costs[arm]["steps"] / costs[JOINT]["steps"]
        length = (*size.scene_settings, f"train.steps={max(1, round(steps * ratio))}")
        cell = Cell(SCENES, ALL_FOUR if arm == JOINT else arm, FEW, tune=tune, seed=seed)
        planned = claim.plan(cell, scenes, corpus, campaign.home, length)
        tasks.append(Task(_scene_name(arm, tune, seed), planned.run, partial(_scene, planned, arm, tune)))
    return tasks


def _scene_name(arm: str, tune: str, seed: int) -> str:
    return f"scenes/{arm}{f'/{tune}' if tune else ''}/{seed}"


def _scene(planned: claim.Plan, arm: str, tune: str, stop: StopRequests) -> dict[str, Any]:
    _finished(claim.train_cell(planned, stop))
    record = claim.measure_cell(planned)
    if not tune:
        record["numbers"] |= _grounding(planned)
    name = _scene_name(arm, tune, planned.cell.seed)
    return record | {"cell": name, "arm": arm, "share": FEW, "tune": tune, "units": record.pop("rows")}


def _grounding(planned: claim.Plan) -> dict[str, float]:
    loaded = load_run(planned.run, dist.device())
    mixture, settings = Mixture([str(planned.corpus.foils)], task="foils"), loaded.eval
    foils = FoilDataset(mixture, *reading_of(loaded), settings.limit // 2 * 2)
    return grounding(loaded.model, foils, settings.batch, dist.device())
