"""What a run folder says without loading the model: run.json, config.toml, metrics.jsonl and eval.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mvlm.checkpoint.description import CONFIG, EVALUATIONS, LEDGER, METRICS, RUN_JSON
from mvlm.config.load import flat, load_stored_config
from mvlm.config.schema import Blueprint, Data, Eval
from mvlm.errors import UserError

Curve = tuple[list[int], list[float]]
"""Steps and values."""


@dataclass(frozen=True)
class RunFacts:
    """
    Attributes:
        described: run.json.
        settings: every value of config.toml by its `table.key`, including those of `blueprint`, `data` and `eval`.
        metrics: by step, ascending; for a repeated step the last line, and none that the run has since rolled back.
    """

    folder: Path
    name: str
    described: dict[str, Any]
    settings: dict[str, Any]
    blueprint: Blueprint
    data: Data
    eval: Eval
    metrics: dict[int, dict[str, Any]]
    written: datetime

    def curve(self, key: str) -> Curve:
        """The logged values of one metric; steps without it are left out."""
        points = [(step, line[key]) for step, line in self.metrics.items() if line.get(key) is not None]
        return [step for step, _ in points], [float(value) for _, value in points]

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The lines of stages.jsonl; none for a run without stages."""
        path = self.folder / LEDGER
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    @property
    def global_batch(self) -> int:
        return int(self.settings["train.global_batch"])

    @property
    def last_step(self) -> int:
        return max(self.metrics, default=0)


def read_facts(folder: Path, description: Path | None = None) -> RunFacts:
    """Read a run folder.

    Args:
        description: a checkpoint of the run whose copies of its run.json and config.toml are read in their place.

    Raises:
        UserError: it is not a run folder, or a file in it is damaged.
    """
    described = read_json((description or folder) / RUN_JSON)
    if described is None:
        raise UserError(f"No run at {folder}: it holds no run.json; give a folder that `mvlm train` wrote.")
    config, metrics = load_stored_config((description or folder) / CONFIG), folder / METRICS
    written = (metrics if metrics.exists() else (description or folder) / RUN_JSON).stat().st_mtime
    return RunFacts(
        folder,
        folder.resolve().name,
        described,
        flat(config),
        config.blueprint,
        config.data,
        config.eval,
        _merged(_read_metrics(metrics), _read_metrics(folder / EVALUATIONS)),
        datetime.fromtimestamp(written).astimezone(),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file.

    Raises:
        UserError: it cannot be read or is not one JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): delete it or write it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: delete it or write it again.")
    return content


def _read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """Lines merged by step; the last may be incomplete, if the run was killed or is still writing."""
    if not path.exists():
        return {}
    steps: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            step = int(content["step"])
            while "loss" in content and steps and next(reversed(steps)) >= step:
                steps.popitem()
            steps.setdefault(step, {}).update(content)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(f"{path}, line {number}, is not a metrics line: delete that line.") from None
    return dict(sorted(steps.items()))


def _merged(trained: dict[int, dict[str, Any]], evaluated: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Lines of training, merged with those of evaluations by another job."""
    return {step: trained.get(step, {}) | evaluated.get(step, {}) for step in sorted(trained.keys() | evaluated.keys())}
