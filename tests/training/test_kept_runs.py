"""Runs begun before version 0.1 resume under the current code with the same settings and the same losses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from mvlm.config import load as configuration
from mvlm.config.load import flat, load_stored_config
from mvlm.config.schema import Checkpoint, Config, Objectives, Optim
from tests.training.conftest import KEPT, Resume, losses_by_step

OTHER_DEFAULTS: dict[type, dict[str, Any]] = {
    Objectives: {"itm_group": 4, "text_mask_ratio": 0.5, "exclude_duplicates": False},
    Optim: {"clip": 0.01, "weight_decay": 0.5, "floor": 0.9},
    Checkpoint: {"keep": 1},
}


def change_defaults(patch: pytest.MonkeyPatch) -> None:
    """Change some defaults, as a later version may."""
    for table, changed in OTHER_DEFAULTS.items():
        names = table.__dataclass_fields__  # type: ignore[attr-defined]
        old = table.__init__.__defaults__  # type: ignore[misc]
        new = tuple(changed.get(name, default) for name, default in zip(names, old, strict=True))
        patch.setattr(table.__init__, "__defaults__", new)  # type: ignore[misc]
    assert Config().objectives.itm_group == 4


def settings(folder: Path) -> dict[str, Any]:
    stored = flat(load_stored_config(folder / "config.toml"))
    return {key: value for key, value in stored.items() if key not in ("run.dir", "data.train")}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_kept_run_continues_as_it_began_whatever_the_defaults_are_now(
    resume_kept: Resume, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages 2 and 3 were trained by two ranks."""
    change_defaults(monkeypatch)
    run, kept = resume_kept(stage), KEPT / f"zero{stage}"
    before, after = losses_by_step(kept), losses_by_step(run)
    assert list(after) == [1, 2, 3, 4, 5, 6]
    for step in (4, 5, 6):
        assert after[step] == pytest.approx(before[step], rel=2e-5)
    assert settings(run) == settings(run / "checkpoints/step_00000006") == settings(kept)


def test_keys_added_and_retired_since_the_kept_runs_are_listed() -> None:
    tables = tomllib.loads((KEPT / "zero0/config.toml").read_text())
    known = {f"{table}.{key}" for table, keys in tables.items() for key in keys}
    assert set(flat(Config())) - known == set(configuration.YOUNGER_KEYS)
    assert known - set(flat(Config())) == set(configuration.RETIRED_KEYS)


def test_a_key_missing_from_a_stored_configuration_has_its_old_value_and_not_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (KEPT / "zero0/config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("itm_group = 16\n", ""))
    monkeypatch.setitem(configuration.YOUNGER_KEYS, "objectives.itm_group", 8)
    assert load_stored_config(tmp_path / "config.toml").objectives.itm_group == 8
    assert load_stored_config(KEPT / "zero0/config.toml").objectives.itm_group == 16
