"""A sweep on Ray Tune: the job's run with other settings, many times, giving up bad ones early if asked to (ASHA).

Each trial is a run of its own, in a folder below the job's run.dir, trained as a single job is. Tune's own folder lies
beside the logs; if it exists, the sweep resumes: finished trials stay so, others continue from their checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from mvlm.errors import ExitCode
from mvlm.runtime.storage import write_durably

from ..job import Sweep
from ..record import RECORD, newest_measures, read_record
from ..sweep import combinations, override
from .spec import TUNE, RayJobSpec
from .train import train

NO_LIMIT = 10**9  # steps: a run ends by itself
ON_THE_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}  # where the job's driver is: lost with it, or not at all


class TrialFailed(Exception):
    """Tune starts the trial again when the sweep is submitted again."""


def trial_spec(spec: RayJobSpec, index: int, values: dict[str, Any]) -> RayJobSpec:
    """The single job of a trial."""
    name = f"trial-{index:04d}"
    run = str(Path(spec.run_folder) / name)
    settings = [override(key, value) for key, value in values.items()]
    job = dataclasses.replace(spec.job, name=f"{spec.job.name}-{name}", sweep=None)
    words, logs = [*spec.words, *settings, f"run.dir={run}"], str(Path(spec.logs) / name)
    return dataclasses.replace(spec, job=job, words=words, run_folder=run, logs=logs)


def run_sweep(spec: RayJobSpec) -> int:
    """Run the sweep or resume it, and leave its table as sweep.json and sweep.csv in the job's run folder.

    Returns:
        The exit code: 0 if each trial is done or was given up, else the worst.
    """
    sweep = spec.job.sweep
    assert sweep
    trials = [trial_spec(spec, index, values) for index, values in enumerate(combinations(sweep))]
    results = _tuner(spec, sweep, trials).fit()
    ended = [results[number] for number in range(len(results))]
    failed = {result.config["index"] for result in ended if result.error and result.config}
    tried = enumerate(zip(trials, combinations(sweep), strict=True))
    rows = [_row(trial, values, sweep.metric, index in failed) for index, (trial, values) in tried]
    best_first = 1 if sweep.mode == "min" else -1
    rows.sort(key=lambda row: float("inf") if row[sweep.metric] is None else best_first * row[sweep.metric])
    _write(Path(spec.run_folder), rows)
    codes = {row["exit_code"] for row in rows if row["state"] == "failed"}
    worst = (ExitCode.MISTAKE, ExitCode.USAGE, ExitCode.BUG, ExitCode.REQUEUE)
    return next((code for code in worst if code in codes), ExitCode.BUG if codes else ExitCode.DONE)


def _tuner(spec: RayJobSpec, sweep: Sweep, trials: list[RayJobSpec]) -> tune.Tuner:
    """A new one, or the one whose state is found beside the logs."""

    def report(measures: dict[str, Any]) -> None:
        if isinstance(measures.get(sweep.metric), int | float):  # held-out ones come with the first evaluation
            tune.report(measures)

    def run_trial(config: dict[str, Any]) -> None:
        code = train(trials[config["index"]], report)
        if code != ExitCode.DONE:
            raise TrialFailed(f"{trials[config['index']].job.name} ended with exit code {code}.")

    trainable = tune.with_resources(run_trial, ON_THE_HEAD)
    space = {"index": tune.grid_search(list(range(len(trials))))}
    path = Path(spec.logs) / TUNE
    if tune.Tuner.can_restore(str(path)):
        print(f"cluster: resumes the sweep of {path}", flush=True)
        return tune.Tuner.restore(str(path), trainable, resume_errored=True, param_space=space)
    halving = (
        ASHAScheduler(
            time_attr="step", max_t=NO_LIMIT, grace_period=sweep.grace_steps, reduction_factor=sweep.reduction
        )
        if sweep.grace_steps
        else None
    )
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric, mode=sweep.mode, scheduler=halving, max_concurrent_trials=sweep.parallel or _room(spec)
        ),
        run_config=tune.RunConfig(name=TUNE, storage_path=spec.logs, verbose=1),
    )


def _room(spec: RayJobSpec) -> int:
    """How many trials the cluster can hold now: each takes as many workers as the job says."""
    need = spec.resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(min(int(node.get(name, 0) // amount) for name, amount in need.items()) for node in nodes)
    return max(1, workers // spec.ranks()[1])


def _row(trial: RayJobSpec, values: dict[str, Any], metric: str, failed: bool) -> dict[str, Any]:
    """A line of the table."""
    logs = Path(trial.logs)
    attempts = read_record(logs).attempts if (logs / RECORD).exists() else []
    code = attempts[-1].exit_code if attempts else None
    line = newest_measures(Path(trial.run_folder)) or {}
    state = "failed" if failed else "done" if code == ExitCode.DONE else "given up" if attempts else "not begun"
    facts = {"trial": Path(trial.run_folder).name, "state": state, "exit_code": code, "attempts": len(attempts)}
    return facts | {"step": line.get("step"), metric: line.get(metric), "values": values}


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "sweep.json", json.dumps(rows, indent=1))
    flat = [{name: value for name, value in row.items() if name != "values"} | row["values"] for row in rows]
    table = pandas.DataFrame(flat, dtype=object)  # values as they are: a missing step must not turn others into floats
    write_durably(folder / "sweep.csv", table.to_csv(index=False))
    print(table.to_string(index=False, na_rep="-", float_format="{:.4g}".format))
    print(f"cluster: the table is kept in {folder / 'sweep.json'} and {folder / 'sweep.csv'}", flush=True)
