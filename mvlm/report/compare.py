"""How runs differ, and what became of the data that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.config.toml import as_toml
from mvlm.data.shards.schema import YIELD
from mvlm.report.facts import RunFacts, read_json

LAYOUT = ("world", "micro_batch", "accumulation", "zero_stage", "device", "rows")
"""Keys of run.json that are not in the configuration."""


@dataclass(frozen=True)
class CorpusYield:
    """One corpus of a run, and what sharding it lost."""

    place: str
    read: int
    kept: int
    captions: int
    dropped: list[tuple[str, int]]  # by reason, most frequent first


def differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Settings, layout and versions that differ between runs: the name, and each run's value."""
    settings = [_settings(facts) for facts in runs]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    rows = [(name, [of_run.get(name, "") for of_run in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def corpora(facts: RunFacts) -> list[CorpusYield]:
    """Those of the run's training corpora whose sharding counts are still on this machine.

    Raises:
        UserError: a yield.json is damaged.
    """
    found = []
    for place in facts.data.train:
        folder = Path(place)
        content = read_json(folder / YIELD) or read_json(folder.parent / YIELD)
        if content:
            dropped = sorted(content["dropped"].items(), key=lambda item: (-item[1], item[0]))
            found.append(CorpusYield(place, content["read"], content["kept"], content["captions"], dropped))
    return found


def _settings(facts: RunFacts) -> dict[str, str]:
    """Every setting of a run by its TOML name, then its layout and versions; not its folder, which always differs."""
    values = {key: _text(value) for key, value in facts.settings.items() if key != "run.dir"}
    layout = {name.replace("_", " "): _text(facts.described[name]) for name in LAYOUT if name in facts.described}
    return values | layout | {name: str(version) for name, version in facts.described.get("versions", {}).items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return as_toml(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_text(inner)}" for key, inner in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
