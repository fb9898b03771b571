"""Resuming from a checkpoint, with any number of ranks and any ZeRO stage. Its layout: mvlm/checkpoint/layout.py.

Written by mvlm/training/checkpoint/save.py. If the run's latest checkpoint turns out to be damaged, another takes its
place: mvlm/checkpoint/newest.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mvlm.checkpoint.cut import whole_shape
from mvlm.checkpoint.description import CONFIG, described_in
from mvlm.checkpoint.integrity import check_continuity, compare_shapes, read_whole_state
from mvlm.checkpoint.layout import EMA, LATEST, MOMENTS, WEIGHTS, candidates, find_checkpoint, has_checkpoints
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.state import TrainState
from mvlm.checkpoint.tensors import StoredTensor, open_tensors, require_finite
from mvlm.config.load import load_stored_config
from mvlm.config.schema import Checkpoint
from mvlm.data.loading.sampler import order_of
from mvlm.errors import UserError
from mvlm.pretrained.positions import fit_trained, is_image_position
from mvlm.pretrained.read import is_external
from mvlm.runtime import dist
from mvlm.training.engine import Engine
from mvlm.training.zero.shares import gathered
from mvlm.training.zero.state import MOMENTS as KEYS

Tensors = Mapping[str, StoredTensor]
"""By title."""


@dataclass(frozen=True)
class Start:
    """Where training begins."""

    checkpoint: Path | None  # None: from scratch
    resumes: bool  # exactly; otherwise the weights alone are taken
    own: bool  # the checkpoint lies in the run folder itself
    encoders: str = ""  # an external checkpoint that encoders are taken from


def starting_point(run: Path, config: Checkpoint) -> Start:
    """Decide where training begins, the same on all ranks; all must call.

    1. The latest whole checkpoint in the run folder, so that a command that is started again resumes; a run whose
    folder has any, whole or not, never starts over. 2. `checkpoint.resume`, if given. 3. The weights alone of
    `checkpoint.init`. 4. Scratch, or others' encoders.

    Raises:
        UserError: there is no such checkpoint, or none of the run folder is whole.
    """
    start = dist.as_rank_0(lambda: given_start(run, config))
    return start or Start(newest_whole(run), resumes=True, own=True)


def given_start(run: Path, config: Checkpoint) -> Start | None:
    """By all rules but the first; None if that one applies."""
    if has_checkpoints(run):
        if config.resume:
            _require_latest(run, config.resume)
        return None
    if config.resume:
        return Start(find_checkpoint(config.resume, "checkpoint.resume"), resumes=True, own=False)
    if not config.init or is_external(config.init):
        return Start(None, resumes=False, own=False, encoders=config.init)
    return Start(find_checkpoint(config.init, "checkpoint.init"), resumes=False, own=False)


def _require_latest(run: Path, resume: str) -> None:
    """Raise `UserError` if `checkpoint.resume` names one of the run's own checkpoints that is not its latest."""
    try:
        named = find_checkpoint(resume)
    except UserError:  # it has gone since the run began with it
        return
    stands = candidates(run).first
    if named.resolve().parent == stands.resolve().parent and named.name != stands.name:
        raise UserError(
            f"checkpoint.resume names {named.name} of {run} itself, whose latest is {stands.name}: leave it out and "
            f"write {named.name} into {stands.parent / LATEST}, or set another run.dir."
        )


def restore_start(
    engine: Engine, run: Path, start: Start, data: tuple[str, str], begins_stage: bool
) -> tuple[Start, TrainState]:
    """Fill the engine from where training begins, or from what is now the latest; all ranks must call.

    An earlier attempt that is still alive trains on and deletes old checkpoints while this one starts up.

    Args:
        data: the fingerprint and the selection of the mixture.
        begins_stage: a stage begins, with the weights of one that may have had other data and another image size.

    Returns:
        The start as it turned out to be, and its state.

    Raises:
        UserError: as `restore` does, or the run was trained on other data.
    """
    checkpoint, state = start.checkpoint, None
    assert checkpoint
    while state is None:
        try:
            state = restore(engine, checkpoint, begins_stage)
        except UserError:
            newest = newest_whole(run) if start.own else checkpoint
            if newest == checkpoint:
                raise
            checkpoint = newest
    if not begins_stage:
        check_continuity(checkpoint, state, *data)
    return replace(start, checkpoint=checkpoint), with_stored_order(state, checkpoint)


def restore(engine: Engine, checkpoint: Path, begins_stage: bool = False) -> TrainState:
    """Fill the engine, new or live, from a checkpoint of any layout; all ranks must call.

    Each rank reads its share of each tensor, and has that of one parameter in memory at a time; if every rank needs
    the whole, they exchange what they have read.

    Args:
        begins_stage: positions of an image of another size are fitted.

    Raises:
        UserError: the checkpoint is damaged, lacks moments that the run needs, is another model's, or has weights
            that are not finite.
    """
    state = read_whole_state(checkpoint)
    parameters = dict(engine.parameters())
    with ExitStack() as stack:
        weights = stack.enter_context(open_tensors(checkpoint, WEIGHTS))
        moments = stack.enter_context(open_tensors(checkpoint, MOMENTS)) if state.updates else {}
        averages = stack.enter_context(open_tensors(checkpoint, EMA)) if engine.has_ema else {}
        compare_shapes(checkpoint, weights, parameters, lambda name: begins_stage and is_image_position(name))
        engine.prepare_state(state.updates)
        shares = Shares(weights, moments, averages)
        for name, parameter in parameters.items():
            keys = shares.keys(name, parameter.requires_grad, engine.has_ema)
            read = partial(shares.read, name)
            if begins_stage and is_image_position(name):
                here = whole_shape(parameter)
                whole = {key: tensor.cpu() for key, tensor in gathered(keys, read, weights[name].shape).items()}
                engine.write(parameter, fit_trained(engine.model.vision, name, whole, here))
            else:
                engine.fill(parameter, keys, read)
        engine.finish_filling()
    if problem := next(filter(None, dist.gather_objects(shares.problem)), None):
        raise UserError(problem)
    if state.loss_scale is not None:
        engine.set_loss_scale_state(state.loss_scale)
    return state


class Shares:
    """Parts of a checkpoint's tensors, by parameter.

    Attributes:
        problem: what was wrong with one that was read, if anything; the ranks exchange it once all have read.
    """

    def __init__(self, weights: Tensors, moments: Tensors, averages: Tensors) -> None:
        self._weights, self._moments, self._averages = weights, moments, averages
        self.problem = ""

    def keys(self, name: str, is_trained: bool, averaged: bool) -> list[str]:
        """What the engine needs of a parameter; an average that the checkpoint lacks begins as the weights."""
        moments = [key for key in KEYS if f"{key}/{name}" in self._moments]
        return ["weight", *moments, *([EMA] if averaged else [])] if is_trained else ["weight"]

    def read(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """Elements `start` to before `stop` of what `keys` gives, flattened; arbitrary if there is a problem."""
        if key in KEYS:
            stored = self._moments[f"{key}/{name}"]
        else:
            stored = self._averages.get(name, self._weights[name]) if key == EMA else self._weights[name]
        try:
            part = stored.part(start, stop)
            if key not in KEYS:
                require_finite(name, part, str(stored.path))
        except UserError as error:
            self.problem = self.problem or str(error)
        except OSError as error:
            part = torch.zeros(stop - start)
            self.problem = self.problem or f"{stored.path} cannot be read ({error}): use another checkpoint."
        return part


def with_stored_order(state: TrainState, checkpoint: Path) -> TrainState:
    """Give a state from before orders were recorded that of its run's stored configuration, if that is there."""
    if state.order:
        return state
    try:
        return replace(state, order=(order_of(load_stored_config(described_in(checkpoint) / CONFIG).data),))
    except UserError:
        return state
