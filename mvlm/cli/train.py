"""Pretrain or fine-tune a model, or resume a run that was stopped.

examples:
  deepspeed --module mvlm train mvlm/configs/tiny.toml --deepspeed_config ds_configs/cpu.json data.train=shards/train
  deepspeed --num_gpus 8 --module mvlm train run.toml --deepspeed_config ds_configs/zero1.json train.global_batch=1024
  torchrun --nproc-per-node 8 -m mvlm train run.toml --deepspeed_config ds_configs/zero2.json

`deepspeed --quiet` hides the messages of DeepSpeed's launcher.

The same command resumes from the run folder's latest checkpoint, with any number of ranks. A resumed run keeps its
settings; what the TOML or a key=value sets to a different value is changed and reported, or refused.
SIGTERM or SIGUSR1 to any rank, or to the launcher, saves and exits with code 75.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mvlm.errors import ExitCode, first_line
from mvlm.runtime.imports import uncollected
from mvlm.runtime.launch import environment, is_held, is_released
from mvlm.runtime.output import output_errors_ignored

if TYPE_CHECKING:
    from mvlm.config.schema import Config
    from mvlm.evaluate.training import Evaluator
    from mvlm.training.health.signals import StopRequests

CAUSE_FIRST_SECONDS = 10.0
"""How long a rank that has lost another waits, so that a launcher which returns the first exit code gets that of the
cause. SLURM and Ray wait for the codes of all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvlm train RUN.toml --deepspeed_config JSON [key=value ...]"
    parser.add_argument("config", metavar="RUN.toml", help="the run's configuration, such as mvlm/configs/base.toml")
    parser.add_argument(
        "--deepspeed_config", "--deepspeed-config", required=True, metavar="JSON", help="such as ds_configs/zero1.json"
    )
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)  # habit of DeepSpeed's users
    parser.set_defaults(takes_overrides=True)
    parser.format_help = partial(_with_keys, parser.format_help)  # type: ignore[method-assign]


def _with_keys(format_help: Callable[[], str]) -> str:
    from mvlm.config.describe import run_keys

    lines = [f"  {key.name}={key.default or '(required)'}" for key in run_keys()]
    return "\n".join([format_help(), "keys and their defaults, which `mvlm config KEY` explains:", *lines, ""])


@output_errors_ignored()  # a log on a full disk, or a terminal that is gone, is no reason to end a run
def run(args: argparse.Namespace) -> int:
    from mvlm.training.health.signals import StopRequests

    stop = StopRequests()  # before imports that take seconds, during which a signal may come
    config, stages, split = _read(args)
    with uncollected():
        from mvlm.config.load import given_keys, read_stages
        from mvlm.runtime import dist, network
        from mvlm.training.zero.config import accumulation_steps, usable_ranks

    launched = environment()
    trains = [each.train for each in stages]
    ranks = usable_ranks(trains, launched["world"], split)
    for train_settings in trains:
        accumulation_steps(train_settings, ranks // split)
    if launched["rank"] >= ranks:
        return 0
    if ranks < launched["world"] and launched["rank"] == 0:
        print(f"train.global_batch {trains[0].global_batch} uses {ranks} of the {launched['world']} ranks launched.")
    _use_the_cpu_well(ranks)
    network.prepare()
    if not dist.uses_cuda():  # else DeepSpeed, if transformers imports it first, warns that it found no accelerator
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if is_held():
        _import_all()
        if not is_released():
            return ExitCode.REQUEUE
    dist.init(ranks)
    if ranks > 1 and launched["rank"] == 0 and (description := network.describe()):
        print(description)
    try:
        with uncollected():
            from mvlm.training.fit.run import train

        names, given = (args.deepspeed_config, args.config), given_keys(args.config, args.overrides)
        code = train(config, names, given, evaluator, stop, read_stages(args.config))
    except Exception as error:
        if dist.lost_peer(error):
            _end_alone(config.run.dir, error, stop)
        dist.close()
        raise
    dist.close()
    return code


def _import_all() -> None:
    """Import what takes nine tenths of a start and needs no other rank."""
    with uncollected():
        from importlib import import_module

        from mvlm.training.zero.start import load_deepspeed

        for name in ("mvlm.training.fit.run", "mvlm.evaluate.training"):
            import_module(name)

        load_deepspeed()


def evaluator(config: Config) -> Evaluator | None:
    """The evaluation that runs every `eval.every` steps; None if no rows are held out, or another job evaluates."""
    with uncollected():
        from mvlm.evaluate.training import Evaluator

    if not config.data.eval or config.eval.every < 0:
        return None
    pictures = config.log.pictures if config.objectives.image else 0
    return Evaluator(config.data, config.task, config.objectives, config.model.image_size, config.eval, pictures)


def _read(args: argparse.Namespace) -> tuple[Config, list[Config], int]:
    """The configuration, the one of each stage (at least one), and the number of ranks that split layers.

    If the run is resumed, its stages keep their batch. Only the data of the stage that it is in must exist: those of
    finished stages may be gone.

    A wrong path or key is reported here, before torch is imported, which takes seconds.
    """
    from mvlm.checkpoint.description import STAGES, stages_over
    from mvlm.checkpoint.layout import has_checkpoints
    from mvlm.cli.places import require_shards
    from mvlm.config.load import given_keys, read_config, read_stages, require_training_data
    from mvlm.config.stages import load_stored_stages, make_stages
    from mvlm.errors import Mistakes
    from mvlm.training.zero.json_file import read_deepspeed_json, refuse_sections, tensor_ranks

    mistakes = Mistakes()
    config = read_config(args.config, args.overrides, mistakes)
    with mistakes.gathered():
        content = read_deepspeed_json(args.deepspeed_config)
        refuse_sections(content, args.deepspeed_config)
    mistakes.settle()
    kept = _with_kept_batch(config, given_keys(args.config, args.overrides))
    stages = make_stages(kept, read_stages(args.config), args.config)
    each = [stages.config(number) for number in range(len(stages))]
    for stage in each:
        require_training_data(stage, args.config)
    run = Path(config.run.dir)
    if has_checkpoints(run) and (run / STAGES).is_file():  # including those that `mvlm stage add` has appended
        known = load_stored_stages(run / STAGES)
        each += [known.config(number) for number in range(len(stages), len(known))]
    data = each[min(stages_over(run), len(each) - 1)].data
    require_shards([*data.train, *config.data.eval])
    with uncollected():
        from mvlm.data.shards.mixture import held_out, training_mixture
        from mvlm.training.logging.trackers import require_installed

    require_installed(config.log)
    training_mixture(data, config.task.corpus, config.data.patience)
    if config.data.eval:
        held_out(config.data, config.task.corpus, config.data.patience)
    return config, each, tensor_ranks(content)


def _with_kept_batch(config: Config, given: frozenset[str]) -> Config:
    """The same with the batch of the run that it resumes, unless another was given.

    Not with a mirror: nodes with separate run folders must all arrive at the same batch.
    """
    from mvlm.checkpoint.description import CONFIG, STAGES, described_in
    from mvlm.checkpoint.layout import candidates, find_checkpoint, has_checkpoints
    from mvlm.config.load import load_stored_config
    from mvlm.errors import UserError

    run, before = Path(config.run.dir), config.checkpoint.resume
    if config.checkpoint.mirror or not (has_checkpoints(run) or before):
        return config
    try:
        checkpoint = candidates(run).first if has_checkpoints(run) else find_checkpoint(before)
        stored = load_stored_config(run / STAGES if (run / STAGES).is_file() else described_in(checkpoint) / CONFIG)
    except UserError:  # training will meet it again, and report it
        return config
    keys = (key for key in ("global_batch", "micro_batch") if f"train.{key}" not in given)
    return replace(config, train=replace(config.train, **{key: getattr(stored.train, key) for key in keys}))


def _cause(error: Exception) -> str:
    """gloo's message, without its source location and its advice to read logs."""
    return re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". This is typically")[0]


def _end_alone(run: str, error: Exception, stop: StopRequests) -> NoReturn:
    """End without the other ranks: whichever of them has died, the checkpoints are whole."""
    rank = os.environ.get("RANK", "0")
    # Not by `logging`, which does not name rank 0; here the rank is what matters.
    print(
        f"mvlm: rank {rank} has lost another rank ({_cause(error)}): start the same command again to resume from "
        f"the newest checkpoint in {run}.",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + (CAUSE_FIRST_SECONDS if stop.launcher_ends_all_ranks() else 0)
    while time.monotonic() < deadline and not stop.signalled:
        time.sleep(0.1)
    os._exit(ExitCode.REQUEUE)  # tearing down a group that has lost a rank may hang


def _use_the_cpu_well(ranks: int) -> None:
    """Use this rank's share of the cores, near its GPU, and avoid page faults by keeping freed memory."""
    import torch

    from mvlm.runtime import dist
    from mvlm.runtime.cpu import keep_freed_memory, share_cores
    from mvlm.runtime.log import rank_log
    from mvlm.runtime.near_gpu import stay_near

    if threads := share_cores(ranks):
        torch.set_num_threads(threads)
    if not dist.uses_cuda():
        keep_freed_memory()
    elif not stay_near(dist.pci_address()):
        rank_log.warning("All cores of this rank are far from its GPU: docs/slurm.md says how ranks are bound.")
