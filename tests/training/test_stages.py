"""Stages of a run change exactly what they are meant to change."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.__main__ import main
from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.tensors import open_tensors
from mvlm.config.load import load_stored_config
from mvlm.config.schema import Config
from mvlm.config.stages import load_stored_stages
from mvlm.errors import HeldOutLost, UserError
from mvlm.evaluate.follow import is_done
from mvlm.report.facts import read_facts
from mvlm.report.page import about
from mvlm.training.ledger import count_seen
from mvlm.training.logging.monitor import Monitor
from mvlm.watch.status import Watcher
from tests.conftest import mvlm_command, signals_kept
from tests.training.conftest import (
    FLAT,
    Staged,
    leave_out,
    losses_by_step,
    read_metrics,
    stage,
    staged_words,
    train_stages,
)
from tests.training.test_run import Launched


def all_losses(run: Path) -> list[tuple[float | None, ...]]:
    return [tuple(line.get(name) for name in ("step", "loss", "itc", "itm", "grad_norm")) for line in read_metrics(run)]


@pytest.fixture(scope="module")
def six_steps(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, ...]]:
    """The losses of six steps at a constant learning rate, without stages."""
    with signals_kept():
        run = train_stages(tmp_path_factory.mktemp("six"), scenes, "run", "", "train.steps=6", *FLAT)
    return losses_by_step(run)


@pytest.fixture(scope="module")
def two_stages(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages of three steps each at that learning rate; tests copy it."""
    with signals_kept():
        return train_stages(tmp_path_factory.mktemp("two"), scenes, "run", stage("train.steps = 3") * 2, *FLAT)


def test_two_stages_of_the_same_settings_are_one_run(two_stages: Path, six_steps: dict[int, tuple[float, ...]]) -> None:
    assert losses_by_step(two_stages) == six_steps
    assert len(six_steps) == 6
    state = read_state(two_stages / "checkpoints/step_00000006")
    assert [(each.step, each.samples, each.ends) for each in state.stages] == [(0, 0, (48,)), (3, 48, ())]


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Data sets of 40 and 24 rows."""
    from data_tools.__main__ import main

    home = tmp_path_factory.mktemp("sets")
    for name, count in (("a", 40), ("b", 24)):
        words = ["synth", "--task", "caption", "--count", str(count), "--seed", str(count), "--out", str(home / name)]
        assert main(words) == 0
    return str(home / "a"), str(home / "b")


def test_a_stage_may_change_data_resolution_objectives_batch_and_freezing(
    staged: Staged, scenes: Path, two_sets: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the 40 rows of data set a, stage 1 sees 32, and stage 2 sees the other 8 before it repeats any."""
    a, b = two_sets
    first = stage(
        'name = "contrast"',
        "train.steps = 2",
        f'data.train = ["{a}"]',
        *(f"objectives.{o} = 0" for o in ("image", "text", "itm")),
    )
    second = stage(
        "train.pairs = 64",
        f'data.train = ["{a}", "{b}"]',
        "model.image_size = 48",
        "train.global_batch = 32",
        "train.freeze = ['text']",
    )
    third = stage("train.steps = 1", f'data.train = ["{b}"]', "data.weights = [2.0]", "schedule = 'continue'")
    run = staged("run", first + second + third, "objectives.image_mask_ratio=0.5")
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert ["text" in line for line in lines] == [False, False, True, True, True]
    state = read_state(run / "checkpoints/step_00000005")
    assert [(each.step, each.samples, each.end) for each in state.stages] == [(0, 0, 2), (2, 32, 4), (4, 96, 5)]
    assert [stream.per_epoch for stream in state.streams] == [40, 24]
    assert state.samples_seen == 112
    ledger = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    assert [[(each["from"], each["to"]) for each in line["drawn"]] for line in ledger] == [
        [(0, 32)],
        [(32, 72), (0, 24)],
        [(24, 40)],
    ]
    counts = count_seen(run)
    assert counts[0][0][1].sum() == 32 and counts[0][0][1].max() == 1
    together = counts[0][0][1] + counts[1][0][1]  # 72 draws of 40 rows
    assert together.min() == 1 and together.max() == 2 and together.sum() == 72
    assert counts[1][1][1].tolist() == [1] * 24
    assert counts[2][0][1].sum() == 16 and counts[2][0][1].max() == 1  # the weight of a single data set has no effect
    with open_tensors(run / "checkpoints/step_00000005", "weights") as files:
        assert files["vision.vit.pos_embed"].shape == (1, 5, 32)
    assert load_stored_config(run / "config.toml").model.image_size == 32
    assert main(["stage", "show", str(run), "--rows"]) == 0
    assert "stage 1 (contrast): steps 0 to 2" in capsys.readouterr().out
    status = Watcher(run).look()
    assert (status.state, status.steps, status.stage) == ("done", 5, "stage 3 of 3")
    about_it = dict(about(read_facts(run)))
    assert about_it["Stages"].startswith("1 (contrast): steps 0 to 2, ") and "112 pairs seen" in about_it["Steps"]
    toml, words = str(run.with_suffix(".toml")), staged_words(run, scenes, "objectives.image_mask_ratio=0.5")
    assert main(["check", toml, *words]) == 0
    checked = capsys.readouterr().out
    assert "stage 2 of 3: steps 2 to 4." in checked and "stage 3 of 3: steps 4 to 5." in checked


def test_a_run_continues_without_the_data_of_a_stage_that_is_over(
    staged: Staged, scenes: Path, two_sets: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(two_sets[0], tmp_path / "gone")
    text = stage("train.steps = 2", f'data.train = ["{tmp_path / "gone"}"]')
    text += stage("train.steps = 2", f'data.train = ["{two_sets[1]}"]')
    run = staged("run", text, "checkpoint.keep=9")
    whole = all_losses(run)
    shutil.rmtree(run / "checkpoints/step_00000004")
    (run / "checkpoints/latest").write_text("step_00000002")
    shutil.rmtree(tmp_path / "gone")
    toml, words = str(run.with_suffix(".toml")), staged_words(run, scenes, "checkpoint.keep=9")
    assert main(["check", toml, *words]) == 0
    assert staged("run", text, "checkpoint.keep=9") == run
    assert all_losses(run)[4:] == whole[2:]
    capsys.readouterr()
    shown = ["stage", "show", str(run), "--rows"]
    assert main(shown) == 1 and f"{tmp_path / 'gone'}, which stage 1 has drawn, is gone" in capsys.readouterr().err
    assert main([*shown, f"data.train={two_sets[0]}"]) == 0
    assert main(["stage", "show", str(run), "train.steps=9"]) == 1
    assert "takes no setting train.steps=9" in capsys.readouterr().err


def test_a_run_resumes_exactly_in_a_stage_and_at_its_border(staged: Staged) -> None:
    """Step 6 is the last, 4 in stage 2 and 3 at its start; the order of samples and the warm-up span both stages."""
    text = stage("train.steps = 3", "objectives.itm = 0")
    text += stage("train.steps = 3", "train.global_batch = 32", 'schedule = "continue"')
    words = ["checkpoint.keep=9", "optim.warmup_steps=4"]
    run = staged("run", text, *words)
    whole, ledger = all_losses(run), (run / "stages.jsonl").read_text()
    rates = [line["lr"] for line in read_metrics(run)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    for step in (6, 4, 3):
        for later in range(step + 1, 7):
            shutil.rmtree(run / f"checkpoints/step_{later:08d}", ignore_errors=True)
        (run / "checkpoints/latest").write_text(f"step_{step:08d}")
        (run / "stages.jsonl").unlink()
        (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:step]))
        assert staged("run", text, *words) == run
        assert all_losses(run) == whole and (run / "stages.jsonl").read_text() == ledger


AVERAGED_AND_ENLARGED = stage("train.steps = 2", "train.ema = 0.5") + stage(
    "train.steps = 2", "model.image_size = 48", "train.freeze = ['text']"
)
"""The second stage enlarges the images, freezes a part and keeps no average."""


def select_score(scenes: Path) -> list[str]:
    return ["eval.select=eval/score", f"data.eval={scenes}/eval", *FLAT]


def best_at_step_2(config: Config) -> Any:
    scores = {"eval/side": config.model.image_size}
    return lambda model, run, step, last: (scores | {"eval/score": float(step == 2)}, None)


@pytest.fixture(scope="module")
def left_out(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run whose first batch after the border is left out from the start."""
    place = tmp_path_factory.mktemp("left-out")
    leave_out(place / "run", 32)
    with signals_kept():
        words = select_score(scenes)
        return train_stages(place, scenes, "run", AVERAGED_AND_ENLARGED, *words, evaluator=best_at_step_2)


def test_the_best_at_a_border_stays_what_was_evaluated_and_a_bad_batch_after_it_is_left_out(
    staged: Staged, scenes: Path, left_out: Path, poison: Callable[..., None]
) -> None:
    poison({32: math.nan})
    run = staged("run", AVERAGED_AND_ENLARGED, *select_score(scenes), evaluator=best_at_step_2)
    assert losses_by_step(run) == losses_by_step(left_out)
    best = find_checkpoint(run / "best")
    assert best.name == "step_00000002" and load_stored_config(best / "config.toml").train.ema == 0.5
    with open_tensors(best, "ema") as averages:
        assert averages["vision.vit.pos_embed"].shape == (1, 5, 32)
    (line,) = map(json.loads, (run / SKIPPED).read_text().splitlines())
    assert (line["step"], line["position"]) == (3, 32)
    state = read_state(run / "checkpoints/step_00000004")
    assert (state.frozen, state.skipped, [each.step for each in state.stages]) == (("text",), (32,), [0, 2])


def evaluator_without_data(config: Config) -> Any:
    def evaluate(model: Any, run: Path, step: int, last: bool) -> Any:
        raise HeldOutLost.of(UserError("A row is damaged."))

    return evaluate


def test_an_evaluation_that_failed_at_a_border_is_repeated_before_the_next_stage(
    staged: Staged, scenes: Path, left_out: Path, poison: Callable[..., None], tmp_path: Path
) -> None:
    """It has the settings of the stage that ends; a bad batch right after it rolls the run back to the border."""
    words = select_score(scenes)
    with pytest.raises(HeldOutLost, match="A row is damaged"):
        staged("run", AVERAGED_AND_ENLARGED, *words, evaluator=evaluator_without_data)
    assert read_state(find_checkpoint(tmp_path / "run")).unevaluated
    poison({32: math.nan})
    run = staged("run", AVERAGED_AND_ENLARGED, *words, evaluator=best_at_step_2)
    assert losses_by_step(run) == losses_by_step(left_out)
    scores = [
        [(line["step"], line["eval/score"], line["eval/side"]) for line in read_metrics(each) if "eval/score" in line]
        for each in (run, left_out)
    ]
    assert scores[0] == scores[1] == [(2, 1.0, 32), (4, 0.0, 48)]
    ours, theirs = (read_state(each / "checkpoints/step_00000004") for each in (run, left_out))
    assert ours == theirs and find_checkpoint(run / "best").name == "step_00000002"


def test_an_evaluation_that_failed_at_a_border_is_not_repeated_if_evaluations_are_switched_off(
    staged: Staged, scenes: Path, six_steps: dict[int, tuple[float, ...]]
) -> None:
    text = stage("train.steps = 2") + stage("train.steps = 2")
    with pytest.raises(HeldOutLost, match="A row is damaged"):
        staged("run", text, f"data.eval={scenes}/eval", *FLAT, evaluator=evaluator_without_data)
    run = staged("run", text, *FLAT)
    assert losses_by_step(run) == {step: six_steps[step] for step in range(1, 5)}
    assert not read_state(find_checkpoint(run)).unevaluated


def test_a_stage_may_not_end_before_the_step_that_the_run_has_reached(
    staged: Staged, two_stages: Path, tmp_path: Path
) -> None:
    """The message counts the steps of the whole run."""
    shutil.copytree(two_stages, tmp_path / "run")
    with pytest.raises(UserError, match=r"^The run is at step 6, and train.steps ends its stage at step 5: "):
        staged("run", stage("train.steps = 3") + stage("train.steps = 2"), *FLAT)


def test_patience_that_ends_at_a_border_ends_the_run(
    staged: Staged, scenes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as done for trackers too, which would otherwise show it as killed."""
    ends, finish = [], Monitor.finish

    def note_and_finish(monitor: Monitor, done: bool, *patience: float, **more: float) -> None:
        ends.append(done)
        finish(monitor, done, *patience, **more)

    monkeypatch.setattr(Monitor, "finish", note_and_finish)
    words = ["eval.select=eval/score", "eval.every=2", "eval.patience=1", f"data.eval={scenes}/eval"]
    text = stage("train.steps = 4") + stage("train.steps = 2")
    run = staged("run", text, *words, evaluator=lambda config: lambda *_: ({"eval/score": 0.5}, None))
    assert is_done(run) and Watcher(run).look().state == "done"
    said = capfd.readouterr().err
    assert said.count("Ended early at step 4") == 1 and "Stage 2 of 2" not in said
    assert ends[0]


def test_if_the_batch_changes_within_a_stage_the_ledger_says_so_and_the_warm_up_depends_on_samples(
    staged: Staged,
) -> None:
    """The batch doubles after 32 of 160 pairs."""
    words = ["checkpoint.keep=9", "optim.warmup_epochs=0.4"]
    run = staged("run", stage("train.pairs = 64"), *words)
    shutil.rmtree(run / "checkpoints/step_00000004")
    (run / "checkpoints/latest").write_text("step_00000002")
    staged("run", stage("train.pairs = 160", "train.global_batch = 32"), *words)
    (line,) = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    assert (line["steps"], line["samples"]) == ([0, 6], [0, 160])
    assert (line["global_batch"], line["earlier_batches"]) == (32, [[32, 16]])
    assert count_seen(run)[0][0][1].sum() == 160
    (running,) = read_state(run / "checkpoints/step_00000006").stages
    assert [running.batch_at(samples) for samples in (0, 16, 32, 64)] == [16, 16, 32, 32]
    rates = [line["lr"] for line in read_metrics(run) if line["step"] == 3 and "lr" in line]
    assert rates[-1] == pytest.approx(1e-3 * 64 / (0.4 * sum(running.shares)), rel=0.05)  # of whole updates


def test_a_warm_up_that_never_ends_is_warned_of_per_schedule_and_not_per_stage(
    staged: Staged, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warm-up may span a whole stage of a ramp of batch sizes, and a later stage of a long run may be short."""
    ramp = stage("train.steps = 4", "train.global_batch = [8, 16]", "optim.warmup_steps = 2")
    run = staged("run", ramp + stage("train.steps = 3", "optim.warmup_steps = 3"))
    said = [line for line in capsys.readouterr().err.splitlines() if "warm-up" in line or "Stage" in line]
    assert said[-2].startswith("Stage 3 of 3")
    assert said[-1].startswith("warning: The warm-up takes all 3 steps of the schedule, whose learning rate only rises")
    assert len(said) == 4
    words = [f"{tmp_path}/run.toml", "--deepspeed_config", f"{tmp_path}/zero0.json", *staged_words(run, scenes)]
    main(["check", *words])
    assert said[-1].removeprefix("warning: ") in capsys.readouterr().out


def test_a_later_stage_whose_data_cannot_be_drawn_is_refused_when_the_run_is_resumed(
    staged: Staged, two_sets: tuple[str, str]
) -> None:
    a, b = two_sets
    words = [f'data.train=["{a}", "{b}"]', *FLAT]
    run = staged("run", "", *words, "train.steps=1")
    with pytest.raises(UserError, match=r"The run has drawn .*/a as a part of"):
        staged("run", stage("train.steps = 2") + stage("train.steps = 1", f'data.train = ["{a}"]'), *words)
    assert find_checkpoint(run).name == "step_00000001"


def test_who_appends_a_stage_to_a_run_that_patience_has_ended_is_told_to_raise_it(
    staged: Staged, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same patience, the command that trained the run would end at once and never begin the stage."""
    select = [f"data.eval={scenes}/eval", "eval.every=1", "eval.select=eval/mean_recall"]
    words = ["train.steps=3", *FLAT, *select]

    def never_better(config: Config) -> Any:
        return lambda *_: ({"eval/mean_recall": 0.5}, None)

    run = staged("run", "", *words, "eval.patience=1", evaluator=never_better)
    assert main(["stage", "add", str(run), "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "has ended early, since eval/mean_recall has not been better" in said and "a larger eval.patience" in said
    for patience, last in ((1, 2), (0, 4)):
        staged("run", "", *words, f"eval.patience={patience}", evaluator=never_better)
        assert max(losses_by_step(run)) == last


@pytest.mark.campaign
def test_a_stage_is_appended_to_a_run_that_has_ended(
    staged: Staged, six_steps: dict[int, tuple[float, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """It continues the order of samples, and the command that trained the run is enough to train it."""
    words = ["train.steps=3", *FLAT]
    run = staged("run", "", *words)
    assert main(["stage", "add", str(run), "--steps", "3"]) == 0
    assert "will make 3 updates" in capsys.readouterr().out
    assert staged("run", "", *words) == run
    assert losses_by_step(run) == six_steps
    assert main(["stage", "add", str(run), "--steps", "3", "run.seed=4"]) == 1
    with pytest.raises(UserError, match=r"^train.steps = 30 would change nothing, .* `mvlm stage add`\.$"):
        staged("run", "", "train.steps=30", *FLAT)


def test_a_run_that_starts_over_in_its_folder_has_none_of_the_earlier_stages(
    staged: Staged, two_stages: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(two_stages, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    staged("run", "", "train.steps=1", *FLAT)
    assert [line["step"] for line in read_metrics(run)] == [1]
    assert not (run / "stages.toml").exists() and not (run / "stages.jsonl").exists()


def test_the_steps_before_the_first_appended_stage_are_shown_as_stage_1(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["stage", "add", str(run), "--steps", "3"]) == 0
    capsys.readouterr()
    assert main(["stage", "show", str(run), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["stage"], line["steps"]) == (1, [0, read_state(find_checkpoint(run)).step])
    assert main(["stage", "show", str(run), "--rows"]) == 0
    assert capsys.readouterr().out == f"stage 1: steps 0 to {line['steps'][1]:,}\nstage 2 of 2: not begun\n"


def test_stages_are_appended_to_a_run_while_it_trains(
    staged: Staged, scenes: Path, six_steps: dict[int, tuple[float, ...]]
) -> None:
    """One is appended in the middle of the only stage, and one while the next begins, before its stages are stored."""
    begun = list[int]()

    def append(run: Path, steps: int, *words: str) -> None:
        assert main(["stage", "add", str(run), "--steps", str(steps), *words]) == 0

    def evaluate(model: Any, run: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        if step == 2:
            append(run, 2)
        return {"eval/none": 0.0}, None

    def evaluator(config: Config) -> Any:
        begun.append(config.train.steps)
        run = Path(config.run.dir)
        if len(begun) == 2:
            assert not is_done(run) and Watcher(run).look().state != "done", "only the first stage is over"
            append(run, 1, "--continue")
        return evaluate

    words = ["train.steps=3", f"data.eval={scenes}/eval", "eval.every=2", *FLAT]
    run = staged("run", "", *words, evaluator=evaluator)
    assert is_done(run) and Watcher(run).look().state == "done"
    appended = load_stored_stages(run / "stages.toml").tables
    assert [table.get("schedule") for table in appended] == [None, None, "continue"]
    assert begun == [3, 2, 1] and losses_by_step(run) == six_steps
    ledger = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in ledger] == [[0, 3], [3, 5], [5, 6]]
    assert [(line["drawn"][0]["from"], line["drawn"][0]["to"]) for line in ledger] == [(0, 48), (48, 80), (80, 96)]


@pytest.mark.campaign
@pytest.mark.parametrize("zero", [0, 2])
def test_muons_moments_survive_a_border_that_freezes_and_enlarges(staged: Staged, zero: int) -> None:
    """The frozen text encoder stays as it was, and everything that still trains keeps its moments."""
    text = stage("train.steps = 2") + stage(
        "train.steps = 2", "train.freeze = ['text']", "model.image_size = 48", "schedule = 'continue'"
    )
    words = ["optim.name=muon", "objectives.image_mask_ratio=0.5", "checkpoint.keep=9", *FLAT]
    run = staged("run", text, *words, zero=zero)
    matrix, found = "vision.vit.blocks.0.attn.qkv.weight", {}
    for step in (2, 4):
        with ExitStack() as stack:
            checkpoint = run / f"checkpoints/step_{step:08d}"
            weights = stack.enter_context(open_tensors(checkpoint, "weights"))
            moments = stack.enter_context(open_tensors(checkpoint, "moments"))
            found[step] = {
                name: weights[name].tensor() for name in weights if name.startswith("text.") or name == matrix
            }
            frozen = [name for name in moments if name.startswith("exp_avg/text.")]
            assert bool(frozen) == (step == 2), "frozen parts have no moments"
            assert f"exp_avg/{matrix}" in moments and f"exp_avg_sq/{matrix}" not in moments
            assert weights["vision.vit.pos_embed"].shape[1] == (5 if step == 2 else 10)
    changed = [name for name in found[2] if not torch.equal(found[2][name], found[4][name])]
    assert changed == [matrix], "the text encoder stays as it was"


@pytest.mark.campaign
@pytest.mark.parametrize("zero", [2, 3])
def test_runs_killed_at_borders_continue_with_other_ranks_and_see_the_same_rows(
    staged: Staged, two_sets: tuple[str, str], scenes: Path, tmp_path: Path, zero: int
) -> None:
    """Data, image size and batch change; all processes are killed as soon as a step at a border is logged.

    The losses differ from those of an uninterrupted run of one rank at ZeRO stage 0 by rounding alone.
    """
    a, b = two_sets
    sets = (f'["{a}"]', f'["{a}", "{b}"]', f'["{b}"]', f'["{a}", "{b}"]')
    batches, sizes = (16, 32, 16, 16), (32, 48, 48, 32)
    parts = zip(sets, batches, sizes, strict=True)
    tables = "".join(
        stage(
            "train.steps = 3",
            f"data.train = {names}",
            f"train.global_batch = {batch}",
            f"model.image_size = {size}",
        )
        for names, batch, size in parts
    )
    saving = ("checkpoint.every=1", "objectives.image_mask_ratio=0.5")
    whole, run, json_file = staged("whole", tables, *saving), tmp_path / "run", tmp_path / "zero.json"
    json_file.write_text(json.dumps({"zero_optimization": {"stage": zero}}))

    def launch(ranks: int) -> Launched:
        words = ["train", str(tmp_path / "whole.toml"), "--deepspeed_config", str(json_file)]
        return Launched(mvlm_command(*words, *staged_words(run, scenes, *saving), ranks=ranks), run)

    for step, ranks in ((3, 1), (4, 2), (6, 4), (7, 1), (9, 2)):
        launched = launch(ranks)
        launched.wait_for_step(step)
        os.killpg(launched.process.pid, signal.SIGKILL)
        launched.process.communicate()
    code, said = launch(4).end()
    assert code == 0, said
    assert (run / "stages.jsonl").read_text() == (whole / "stages.jsonl").read_text()
    before, after = losses_by_step(whole), losses_by_step(run)
    assert sorted(after) == list(range(1, 13))
    for step, losses in after.items():
        assert losses == pytest.approx(before[step], rel=1e-3)
