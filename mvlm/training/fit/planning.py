"""Plans a run, or a stage of one: all that is settled before anything is built or written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mvlm.checkpoint.fetch import begin_without, fetch_newest
from mvlm.checkpoint.folder_group import FolderGroup, find_folder_group
from mvlm.checkpoint.mirror import Mirror
from mvlm.checkpoint.peers import memory_of
from mvlm.config.schema import Config
from mvlm.config.stages import Table, with_shuffle
from mvlm.data.loading.sampler import reason_for_blocks, settle_shuffle
from mvlm.data.shards.mixture import Mixture, training_mixture
from mvlm.runtime import dist, replicas
from mvlm.training.build import build_dataset, build_empty, expected_classes, expected_tokenizer
from mvlm.training.checkpoint.resume import Start, starting_point
from mvlm.training.compilation import is_compiled
from mvlm.training.fit.settings import Resumed, resume_config
from mvlm.training.fit.stages import Standing, settle_stages
from mvlm.training.health.signals import StopRequests
from mvlm.training.kernels import check_names
from mvlm.training.logging.trackers import require_installed
from mvlm.training.optim import count_parameters
from mvlm.training.parallelize import freeze
from mvlm.training.schedule import LearningRate, learning_rate, schedule_steps
from mvlm.training.tensor_parallel import split_layers
from mvlm.training.zero.config import RunSide, resolve
from mvlm.training.zero.json_file import read_deepspeed_json, tensor_ranks


@dataclass(frozen=True)
class Plan:
    """A run as it will be, before anything is built or written.

    Attributes:
        content, names: the DeepSpeed JSON, and the paths of it and of the run TOML.
        resumed: what a run is resumed with; None = it begins.
        steps: updates in all, or until the stage ends, and of warm-up.
        learning_rate: what it is at each of them.
        shuffle: a sentence if the run settles in which order it draws its samples.
        standing: of a run with stages.
    """

    config: Config
    content: dict[str, Any]
    names: tuple[str, str]
    folder: Path
    mirror: Mirror | None
    group: FolderGroup
    start: Start
    resumed: Resumed | None
    mixture: Mixture
    steps: tuple[int, int]
    learning_rate: LearningRate
    shuffle: str
    standing: Standing | None

    @property
    def begins_stage(self) -> bool:
        """Whether it resumes from the checkpoint with which another stage ended."""
        return self.standing is not None and self.standing.begins and self.resumed is not None

    @property
    def frozen_until(self) -> dict[str, int]:
        """Updates before which parts were last frozen."""
        if not self.resumed:
            return {}
        state = self.resumed.state
        return (state.freezing(self.config.train.freeze) if self.begins_stage else state).frozen_until

    def resolve(self, parameters: int, micro_batch: int | None = None) -> dict[str, Any]:
        """The DeepSpeed configuration, for a model of so many parameters and, if one was found, a micro-batch."""
        train = self.config.train
        train = replace(train, micro_batch=micro_batch) if micro_batch else train
        return self._resolved(replace(self.config, train=train), self.steps, parameters)

    def _resolved(self, config: Config, steps: tuple[int | None, int | None], parameters: int) -> dict[str, Any]:
        side = RunSide(self.names, config.run.dir, config.train, config.optim, replicas.world(), steps, parameters)
        return resolve(self.content, side)

    def rehearse(self, evaluator: Callable[[Config], object] | None) -> None:
        """Raise `UserError` if training would later find that it cannot begin, using models with shapes alone.

        Args:
            evaluator: refuses what could not be measured in a stage to come; None = nothing is measured.
        """
        is_compiled(self.config.train, self.resolve(rehearse(self.config, self.mixture, self.start, replicas.size())))
        if self.standing and self.standing.begins:
            for number in range(self.standing.number + 1, len(self.standing.stages)):
                config = self.standing.stages.config(number)
                mixture = training_mixture(config.data, config.task.corpus, config.data.patience)
                parameters = rehearse(config, mixture, self.start, replicas.size())
                is_compiled(config.train, self._resolved(config, (None, None), parameters))
                require_installed(config.log)
                if evaluator:
                    evaluator(config)


def rehearse(config: Config, mixture: Mixture, start: Start, split: int) -> int:
    """Raise `UserError` if the model of a run or a stage, built with shapes alone, could not be trained.

    Args:
        split: ranks of a replica, which divide its layers.

    Returns:
        How many parameters the model has.
    """
    check_names(config.kernels)
    tokenizer = expected_tokenizer(config.data, config.model.text, start)
    blueprint, classes = config.blueprint, expected_classes(config.task, start)
    model, _ = build_empty(blueprint, config.data, tokenizer, start, classes)
    build_dataset(blueprint, config.data, mixture, tokenizer, model)
    freeze(model, config.train.freeze)
    parameters = count_parameters(model)
    if split > 1:
        split_layers(model, split, 0)
    return parameters


def make_plan(
    config: Config, names: tuple[str, str], given: frozenset[str], stop: StopRequests, tables: Sequence[Table]
) -> Plan:
    """Where the run begins, with which settings, on which data; all ranks must call."""
    folder = Path(config.run.dir)
    content = read_deepspeed_json(names[0])
    replicas.arrange(tensor_ranks(content))
    mirror = Mirror(config.checkpoint.mirror) if config.checkpoint.mirror else None
    group = find_folder_group(folder, mirrored=mirror is not None)
    if mirror and not fetch_newest(mirror, folder, group, memory_of(folder) if config.checkpoint.peers else None):
        begin_without(mirror, folder, group)
    start = starting_point(folder, config.checkpoint)
    standing = dist.as_rank_0(partial(settle_stages, config, given, tables, names[1], start, folder))
    if standing:
        resumed, config = standing.resumed, standing.config
    else:
        resumed = dist.as_rank_0(partial(resume_config, config, given, start)) if start.resumes else None
        config = resumed.config if resumed else config
    if resumed:
        require_installed(config.log)
    stop.limit_time(config.train.time_limit)
    # An audit compares bits, and the ranks of a replica rely on equal ones.
    if config.train.deterministic or config.train.audit or replicas.size() > 1:
        _compute_deterministically()
    data, shuffle = settle_shuffle(config.data, dist.on_all(partial(reason_for_blocks, config.data)))
    config = replace(config, data=data)
    mixture = training_mixture(config.data, config.task.corpus, config.data.patience)
    if standing:
        standing = replace(standing, config=config, stages=with_shuffle(standing.stages, data))
        rate, steps = standing.schedule()
    else:
        state = resumed.state if resumed else None
        steps = schedule_steps(config.train, config.optim, mixture.per_epoch, state)
        rate = learning_rate(config.train, config.optim, mixture.per_epoch, steps, state)
    return Plan(config, content, names, folder, mirror, group, start, resumed, mixture, steps, rate, shuffle, standing)


def _compute_deterministically() -> None:
    """Ask torch for the same bits in every run, and for an error if it cannot give them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
