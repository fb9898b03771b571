"""`[[stage]]` tables: what they may contain, the configurations that result, and a sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvlm.config.load import load_config, read_stages
from mvlm.config.stages import Stages, load_stored_stages, make_stages
from mvlm.errors import UserError
from mvlm.training.fit.stages import Standing, checked, outline

BASE = "[data]\ntrain = ['x']\n[train]\nsteps = 10\nglobal_batch = 16\n[optim]\nwarmup_steps = 2\n"


def stages(tmp_path: Path, text: str) -> Stages:
    toml = tmp_path / "run.toml"
    toml.write_text(BASE + text)
    return checked(make_stages(load_config(toml), read_stages(toml), "run.toml"))


def test_a_run_without_stages_is_a_single_stage(tmp_path: Path) -> None:
    found = stages(tmp_path, "")
    assert found.is_all and len(found) == 1 and found.config(0) == found.base


def test_a_stage_inherits_the_settings_that_it_does_not_change(tmp_path: Path) -> None:
    found = stages(
        tmp_path,
        "[[stage]]\nname = 'a'\ntrain.pairs = 320\nobjectives.itm = 0\n"
        "[[stage]]\ntrain.epochs = 2\nmodel.image_size = 64\n",
    )
    first, second = found.config(0), found.config(1)
    assert (first.train.pairs, first.train.steps, first.objectives.itm, first.model.image_size) == (320, 0, 0, 224)
    assert (second.train.steps, second.train.epochs, second.objectives.itm, second.model.image_size) == (0, 2, 1, 64)
    assert [found.title(n) for n in (0, 1)] == ["stage 1 of 2 (a)", "stage 2 of 2"]
    (tmp_path / "stages.toml").write_text(found.dump())
    stored = load_stored_stages(tmp_path / "stages.toml")
    assert (stored.base, stored.tables) == (found.base, found.tables)


def test_a_ramp_is_several_stages_with_one_schedule(tmp_path: Path) -> None:
    found = stages(
        tmp_path, "[[stage]]\ntrain.steps = 10\ntrain.global_batch = [16, 32, 64]\n[[stage]]\ntrain.steps = 5\n"
    )
    trains = [found.config(number).train for number in range(4)]
    assert [(t.global_batch, t.steps) for t in trains] == [(16, 3), (32, 3), (64, 4), (16, 5)]
    assert [found.head(number) for number in range(4)] == [0, 0, 0, 3]
    assert [found.last_of(number) for number in range(4)] == [2, 2, 2, 3]


def test_a_stage_restarts_the_schedule_unless_it_continues_it(tmp_path: Path, scenes: Path) -> None:
    data, rates = f"data.train = ['{scenes}/train']\n", {}
    for kind in ("", "schedule = 'continue'\n"):
        found = stages(
            tmp_path, f"[[stage]]\n{data}train.steps = 4\n[[stage]]\n{kind}{data}train.steps = 6\noptim.lr = 0.1\n"
        )
        sections = outline(found)
        assert [(s.first, s.end) for s in sections] == [(0, 4), (4, 10)]
        rate, steps = Standing(found, 1, True, found.config(1), None, sections).schedule()
        assert steps == (10, 2)
        rates[kind] = [rate(step) for step in range(4, 10)]
    own, continued = rates.values()
    assert own[:2] == [0.5, 1.0] and own[-1] == pytest.approx(0.1)
    assert continued[0] < 1 and continued == sorted(continued, reverse=True) and continued[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[stage]]\nname = 'a'\n", r"run.toml, stage 1 has no length: give one of train.steps"),
        ("[[stage]]\ntrain.steps = 1\ntrain.epochs = 1\n", r"stage 1 has train.steps and train.epochs: give one of"),
        ("[[stage]]\ntrain.steps = 0\n", r"stage 1 has train.steps = 0: give every stage"),
        ("[[stage]]\ntrain.pairs = 1\ntrain.global_batch = [16, 32]\n", r"stage 1 has train.pairs = 0: .* of a ramp"),
        ("[[stage]]\ntrain.steps = 1\n[[stage]]\ntrain.steps = 1\noptim.lrr = 1\n", r"stage 2: unknown key optim.lrr"),
        ("[[stage]]\ntrain.steps = 1\nrun.seed = 3\n", r"stage 1 sets run.seed, which no stage can change"),
        ("[[stage]]\ntrain.steps = 1\nmodel.cross_depth = 2\n", r"sets model.cross_depth, which no stage can change"),
        ("[[stage]]\ntrain.steps = 1\nschedule = 'other'\n", r"schedule is 'other': give \"own\" or \"continue\""),
        ("[[stage]]\ntrain.steps = 1\noptim.lr = -1\n", r"stage 1: optim.lr is -1.0: it must be above 0"),
        ("[stage]\nsteps = 1\n", r"stage must be tables, each under a line \[\[stage\]\]"),
        ("[[stage]]\ntrain.steps = 9\ntrain.global_batch = [16]\n", r"global_batch is \[16\]: give one number, or a"),
    ],
)
def test_an_impossible_stage_is_refused_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        stages(tmp_path, text)
    assert "\n" not in str(error.value)
