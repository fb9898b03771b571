"""Which of its stages a run is in, where each begins and ends, and which schedule its learning rate follows.

A stage ends as a run does: everything is saved. The next one resumes that checkpoint with other settings, and may
change more of them than a resumed run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mvlm.checkpoint.description import CONFIG, STAGES, described_in
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.state import DataStream, StageState, TrainState
from mvlm.config.load import LENGTHS, flat, load_stored_config
from mvlm.config.schema import Config
from mvlm.config.stages import Stages, Table, draws_alike, keys_of, load_stored_stages, make_stages
from mvlm.data.loading.sampler import order_of
from mvlm.data.loading.streams import begin_stage, check_drawable, first_stage, reordered
from mvlm.data.shards.mixture import Mixture, training_mixture
from mvlm.errors import Mistakes, UserError
from mvlm.training.checkpoint.resume import Start
from mvlm.training.fit.settings import (
    ON_RESUME,
    OnResume,
    Resumed,
    alters_loss,
    changes,
    kept_settings,
    merge_settings,
)
from mvlm.training.schedule import LearningRate, learning_rate, schedule_steps, warmup_steps

AT_BORDER = frozenset(("data.weights", "data.where", "data.epoch", "model.image_size", "train.freeze"))
"""Keys that a stage may set although a resumed run may not change them."""


@dataclass(frozen=True)
class Section:
    """A stage's updates, from `first` to `end`, and the draws in an epoch of its data."""

    name: str
    first: int
    end: int
    per_epoch: int


@dataclass(frozen=True)
class Standing:
    """Where a run with stages stands when an attempt begins.

    Attributes:
        number: of the stage that it resumes in.
        begins: that stage has not begun yet.
        config: of that stage.
        resumed: what a run is resumed with; None = it begins.
        sections: of all stages, those to come as they are planned.
        before: the stages and streams that the state is to have, if it is that of a run without stages.
    """

    stages: Stages
    number: int
    begins: bool
    config: Config
    resumed: Resumed | None
    sections: tuple[Section, ...]
    before: tuple[tuple[StageState, ...], tuple[DataStream, ...]] | None = None

    @property
    def section(self) -> Section:
        return self.sections[self.number]

    @property
    def title(self) -> str:
        section = self.section
        return f"{self.stages.title(self.number)}, steps {section.first:,} to {section.end:,}"

    def schedule(self) -> tuple[LearningRate, tuple[int, int]]:
        """The learning rate, and the last update and those of the warm-up."""
        head, last = self.stages.head(self.number), self.stages.last_of(self.number)
        config, first = self.stages.config(head), self.sections[head].first
        total = self.sections[last].end - first
        per_epoch = self.sections[head].per_epoch
        goes_on = head == self.number and not self.begins
        state = _within_stage(self.resumed.state) if self.resumed and goes_on else None
        warmup = min(warmup_steps(config.train, config.optim, per_epoch, state), total - 1)
        rate = learning_rate(config.train, config.optim, per_epoch, (total, warmup), state)
        return replace(rate, first=first), (self.section.end, warmup)

    def enter(self, state: TrainState, mixture: Mixture) -> TrainState:
        """The state that the attempt begins with, from the checkpoint's, which is the same on all ranks."""
        if self.before is not None and not state.stages:
            state = replace(state, stages=self.before[0], streams=self.before[1])
        batch = self.config.train.global_batch
        if not self.begins:
            *before, running = state.stages
            state = replace(state, streams=reordered(state, order_of(self.config.data)))
            if running.global_batch != batch and state.samples_seen > running.samples:
                earlier = (*running.earlier, (state.samples_seen, running.global_batch))
                running = replace(running, earlier=earlier)
            return replace(state, stages=(*before, replace(running, end=self.section.end, global_batch=batch)))
        state = state.freezing(self.config.train.freeze)
        stage = StageState(self.number, self.section.name, 0, 0, self.section.end, batch, (), (), ())
        return begin_stage(state, stage, mixture, order_of(self.config.data), draws_alike(self.stages))


def settle_stages(
    config: Config, given: frozenset[str], tables: Sequence[Table], where: str, start: Start, folder: Path
) -> Standing | None:
    """Where a run stands among its stages; None for a run without any. Called on one rank.

    Args:
        config, given, tables, where: as the run TOML and the overrides make it, the keys that they set, the TOML's
            `[[stage]]` tables, and its path.

    Raises:
        UserError: a stage cannot work as it is configured, or one that is over has been changed.
    """
    stored = stored_stages(folder, start) if start.resumes and start.own else None
    if stored is None and not tables:
        return None
    if not start.resumes:
        stages = checked(make_stages(config, tables, where))
        return Standing(stages, 0, True, stages.config(0), None, _sections(stages, ()))
    if not start.own:
        raise UserError(
            f"{where} has stages, and checkpoint.resume names a checkpoint of another run: give checkpoint.init, or "
            "append the stages to that run by `mvlm stage add`."
        )
    assert start.checkpoint
    kept, state = load_stored_config(described_in(start.checkpoint) / CONFIG), read_state(start.checkpoint)
    stored = stored or Stages(kept, ({},), str(folder / STAGES))
    running = state.stages[-1].number if state.stages else 0
    mistakes = Mistakes()
    base, changed, left = merge_settings(stored.base, config, given, start.checkpoint, mistakes)
    if not tables and (running or stored.tables[0]):
        for key in [key for key in LENGTHS if f"train.{key}" in changed]:
            mistakes.add(
                f"train.{key} = {getattr(base.train, key)} would change nothing, since each stage of {folder} has a "
                "length of its own: leave it as it was, and append a stage by `mvlm stage add`."
            )
    mistakes.settle()
    stages = checked(replace(stored, base=base, tables=_merged(stored, tables, running, where)))
    before, end = None, _end(stages.config(running), kept, state)
    if not state.stages:
        known = _first(stages, kept, state, end)
        before, state = (known.stages, known.streams), known
    is_over = state.step >= end and not state.unevaluated  # an owed evaluation is made with the stage's own settings
    number = running + 1 if is_over and running + 1 < len(stages) else running
    for coming in range(running + 1, len(stages)):  # now, and not after hours of training
        check_drawable(state, _mixture(stages.config(coming)), kept.data, draws_alike(stages))
    now = stages.config(number)
    allowed = AT_BORDER if number > running else frozenset()
    settled, moved, _ = merge_settings(kept, now, frozenset(flat(now)), start.checkpoint, mistakes, allowed)
    mistakes.settle()
    ended = (*state.stages[:-1], replace(state.stages[-1], end=end))
    reported = (*changes(changed | moved), *kept_settings(left))
    resumed = Resumed(settled, state, reported, alters_loss(changed | moved))
    return Standing(stages, number, number > running, settled, resumed, _sections(stages, ended), before)


def stored_stages(folder: Path, start: Start | None = None) -> Stages | None:
    """The stages of a run folder, or of the checkpoint in it that the run is resumed from; None if it has none."""
    places = [folder]
    if start and start.own and start.checkpoint:
        places.append(described_in(start.checkpoint))
    found = next((place / STAGES for place in places if (place / STAGES).is_file()), None)
    return load_stored_stages(found) if found else None


def checked(stages: Stages) -> Stages:
    """The same stages; raises `UserError` if one of them sets what no stage can change."""
    mistakes = Mistakes()
    for number, table in enumerate(stages.tables):
        with mistakes.gathered():
            stages.config(number)
        for key in sorted(keys_of(table) & ON_RESUME.keys() - AT_BORDER):
            kind = ON_RESUME[key]
            if kind not in (OnResume.APPLIES, OnResume.ORDER):
                why = "it is one for all of them" if kind is OnResume.PLACE else kind.value
                mistakes.add(f"{stages.where}, stage {number + 1} sets {key}, which no stage can change ({why}).")
    mistakes.settle()
    return stages


def has_next_stage(folder: Path, number: int) -> bool:
    """Whether a run folder knows of a stage after this one."""
    stages = stored_stages(folder)
    return stages is not None and number + 1 < len(stages)


def outline(stages: Stages, per_epoch: int | None = None) -> tuple[Section, ...]:
    """The sections of stages that have not begun.

    Args:
        per_epoch: draws in an epoch of a stage that names no data.train.
    """
    return _sections(stages, (), per_epoch)


def _sections(stages: Stages, begun: Sequence[StageState], per_epoch: int | None = None) -> tuple[Section, ...]:
    found = [Section(stage.name, stage.step, stage.end, sum(stage.shares)) for stage in begun]
    for number in range(len(found), len(stages)):
        config, first = stages.config(number), found[-1].end if found else 0
        if per_epoch and not config.data.train:
            draws = per_epoch
        else:
            mixture = _mixture(config)
            if not draws_alike(stages):
                mixture.require_distinct()
            draws = mixture.per_epoch
        length, _ = schedule_steps(config.train, config.optim, draws)
        found.append(Section(stages.name(number), first, first + length, draws))
    return tuple(found)


def _merged(stored: Stages, tables: Sequence[Table], running: int, where: str) -> tuple[Table, ...]:
    """The tables of a TOML, and after them those that were appended to the run."""
    given = make_stages(stored.base, tables, where).tables if tables else ()
    for number in range(min(running, len(given))):
        if given[number] != stored.tables[number]:
            raise UserError(
                f"{where}, stage {number + 1} is over and was different (see {stored.where}): give it as it "
                "was, or start a new run.dir with checkpoint.init."
            )
    return (*given, *stored.tables[len(given) :])


def _end(config: Config, kept: Config, state: TrainState) -> int:
    """The step that the running stage ends at, by its configuration now and the one stored with the checkpoint."""
    keys = (*LENGTHS, "global_batch")
    if state.stages and all(getattr(config.train, key) == getattr(kept.train, key) for key in keys):
        return state.stages[-1].end  # its data may be gone by now
    first, own = state.stages[-1].step if state.stages else 0, _within_stage(state)
    return first + schedule_steps(config.train, config.optim, _mixture(config).per_epoch, own, first)[0]


def _within_stage(state: TrainState) -> TrainState:
    """The same counted from where the running stage began."""
    first, samples = (state.stages[-1].step, state.stages[-1].samples) if state.stages else (0, 0)
    skipped = tuple(position for position in state.skipped if position >= samples)
    return replace(state, step=state.step - first, samples_seen=state.samples_seen - samples, skipped=skipped)


def _first(stages: Stages, kept: Config, state: TrainState, end: int) -> TrainState:
    """The state of a run without stages as that of one in its first stage."""
    stage = StageState(0, stages.name(0), 0, 0, end, kept.train.global_batch, (), (), ())
    return first_stage(state, stage, _mixture(kept))


def _mixture(config: Config) -> Mixture:
    return training_mixture(config.data, config.task.corpus, config.data.patience)
