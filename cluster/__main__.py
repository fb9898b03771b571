"""`mvlm-cluster`: submit, follow and stop jobs that train or make shards, and pipelines of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from mvlm import __version__
from mvlm.errors import ExitCode, UserError, not_utf8
from mvlm.runtime.completion import SHELLS, script
from mvlm.runtime.examples import describe_subcommands
from mvlm.runtime.log import logger

from . import local, shard
from .check import check_run
from .job import load_job, split_overrides
from .pipeline import commands as pipeline
from .pipeline.file import is_pipeline
from .pipeline.submission import find_pipeline
from .ray import backend as ray_backend
from .ray import preflight as ray_preflight
from .record import RECORD, find_logs, read_record
from .slurm import backend as slurm
from .slurm import preflight as slurm_preflight
from .status import as_facts, as_text

BACKENDS = {"local": local, "slurm": slurm, "ray": ray_backend}
PREFLIGHTS = {"local": local.preflight, "slurm": slurm_preflight.preflight, "ray": ray_preflight.preflight}
EXAMPLES = """examples:
  mvlm-cluster submit cluster/local.toml --on local data.train=shards/train train.steps=500
  mvlm-cluster submit cluster/local.toml --on local job.gpus_per_node=2 job.name=two data.train=shards/train
  mvlm-cluster render cluster/local.toml --on local data.train=shards/train
  mvlm-cluster preflight cluster/local.toml --on local
  mvlm-cluster status cluster/local.toml --json
  mvlm-cluster logs -f cluster/local.toml
  mvlm-cluster cancel runs/tiny
  mvlm-cluster submit cluster/slurm.toml --on slurm data.train=/data/shards/train
  mvlm-cluster submit cluster/examples/ray/job.toml --on ray data.train=/shared/shards/train
  mvlm-cluster submit cluster/shards.toml --on slurm shard.tasks=128
  mvlm-cluster submit cluster/pipelines/emoji.toml --on local train.settings.train.steps=100
  mvlm-cluster check cluster/pipelines/emoji.toml --on local
  mvlm-cluster plan cluster/pipelines/emoji.toml
  mvlm-cluster rerun cluster/pipelines/emoji.toml train
  mvlm-cluster completion bash

Overrides that begin with `job.` change the job, all others the run. With --on local, submit stays in the foreground and
exits like the run: 0 done, 1 a mistake, 75 stopped with everything saved; submit the same job again to resume. On a
cluster it returns once the job is queued.
"""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("mvlm-cluster", description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"mvlm-cluster {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for run, backends, text in (
        (_submit, BACKENDS, "run a job"),
        (_render, BACKENDS, "print what submit would run"),
        (_preflight, PREFLIGHTS, "test the nodes of a job and the network between them"),
        (_check, BACKENDS, "check every step of a pipeline"),
    ):
        name = run.__name__.removeprefix("_")
        command = commands.add_parser(
            name, help=text, usage=f"%(prog)s JOB.toml --on {{{','.join(backends)}}} [key=value ...]"
        )
        command.add_argument("job", metavar="JOB.toml", help="a job file or a pipeline file")
        command.add_argument("--on", choices=backends, required=True, help="the back-end")
        command.set_defaults(run=run, takes_overrides=True)
    for run, text in (
        (_status, "show attempts, live ranks, last step and loss"),
        (_logs, "print the logs of all attempts"),
        (_cancel, "make the ranks save and exit; no restart"),
    ):
        command = commands.add_parser(run.__name__.removeprefix("_"), help=text)
        command.add_argument("job", metavar="JOB.toml|DIR", help="the job or pipeline file, or the folder of its logs")
        command.set_defaults(run=run, takes_overrides=False)
        if run is _status:
            command.add_argument("--json", action="store_true", help="print JSON instead of lines")
        if run is _logs:
            command.add_argument("steps", nargs="*", metavar="STEP", help="of a pipeline (default: all)")
            command.add_argument("-f", "--follow", action="store_true", help="follow until the job ends")
    command = commands.add_parser("rerun", help="do steps of a pipeline again, and all that depends on them")
    command.add_argument("job", metavar="PIPELINE.toml|DIR", help="the pipeline file, or the folder of its logs")
    command.add_argument("steps", nargs="+", metavar="STEP")
    command.set_defaults(run=_rerun, takes_overrides=False)
    command = commands.add_parser(
        "plan", help="hours and cost of a pipeline", usage="%(prog)s PIPELINE.toml [key=value ...]"
    )
    command.add_argument("job", metavar="PIPELINE.toml")
    command.set_defaults(run=_plan, takes_overrides=True)
    command = commands.add_parser("completion", help="print a shell completion script for mvlm-cluster")
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=_completion, takes_overrides=False)
    describe_subcommands(commands, EXAMPLES)
    return top


def _submit(args: argparse.Namespace) -> int:
    if is_pipeline(args.job):
        return pipeline.submit(args.job, args.overrides, args.on)
    if shard.is_shard_job(args.job):
        shards = shard.load(args.job, args.overrides)
        _refuse_elsewhere(shards.log_folder, args.on)
        return shard.submit(shards, args.on)
    own, others = split_overrides(args.overrides)
    backend, job = BACKENDS[args.on], load_job(args.job, own)
    backend.render(job, others)  # quickly refuses what the back-end cannot do
    _refuse_elsewhere(job.log_folder, args.on)
    backend.reach(job)
    check_run(job, others, here=backend is local)
    return backend.submit(job, others)


def _refuse_elsewhere(folder: Path, chosen: str) -> None:
    """Raises `UserError` if the job runs or waits on another back-end, as far as can be told from here."""
    if not (folder / RECORD).exists():
        return
    record = read_record(folder)
    if record.backend == chosen:
        return
    status = None
    with contextlib.suppress(UserError):
        status = BACKENDS[record.backend].status(folder)
    if status and status.active:
        how = f"{record.name} is under way on {record.backend} ({status.words})"
        raise UserError(f"{how}: cancel it, or give this one another name and folder.")


def _render(args: argparse.Namespace) -> int:
    if is_pipeline(args.job):
        print(pipeline.render(args.job, args.overrides, args.on))
        return 0
    if shard.is_shard_job(args.job):
        print(shard.render(shard.load(args.job, args.overrides), args.on))
        return 0
    own, others = split_overrides(args.overrides)
    job = load_job(args.job, own)
    rendered = BACKENDS[args.on].render(job, others)
    check_run(job, others, here=args.on == "local")
    print(rendered)
    return 0


def _preflight(args: argparse.Namespace) -> int:
    own, others = split_overrides(args.overrides)
    job = None if is_pipeline(args.job) or shard.is_shard_job(args.job) else load_job(args.job, own)
    if job is None or job.command:
        raise UserError(f"{args.job} has no run for which nodes could be measured: give a job that trains.")
    return PREFLIGHTS[args.on](job, others)


def _check(args: argparse.Namespace) -> int:
    return pipeline.check(args.job, args.overrides, args.on)


def _plan(args: argparse.Namespace) -> int:
    return pipeline.show_plan(args.job, args.overrides)


def _rerun(args: argparse.Namespace) -> int:
    if logs := find_pipeline(args.job):
        return pipeline.rerun(logs, args.steps)
    raise UserError(
        f"{args.job} is not a pipeline, and only steps of a pipeline can be run again: submit the job again."
    )


def _status(args: argparse.Namespace) -> int:
    if logs := find_pipeline(args.job):
        return pipeline.status(logs, args.json)
    folder = find_logs(args.job)
    status = BACKENDS[read_record(folder).backend].status(folder)
    print(json.dumps(as_facts(status), indent=1) if args.json else as_text(status))
    return 0


def _logs(args: argparse.Namespace) -> int:
    if logs := find_pipeline(args.job):
        return pipeline.show_logs(logs, args.follow, args.steps)
    if args.steps:
        raise UserError(f"{args.job} is not a pipeline, and has no step {args.steps[0]}: leave it out.")
    folder = find_logs(args.job)
    record = read_record(folder)
    if record.makes_shards:
        shard.show_logs(folder, record, args.follow)
    else:
        BACKENDS[record.backend].logs(folder, args.follow)
    return 0


def _cancel(args: argparse.Namespace) -> int:
    if logs := find_pipeline(args.job):
        return pipeline.cancel(logs)
    folder = find_logs(args.job)
    print(BACKENDS[read_record(folder).backend].cancel(folder))
    return 0


def _completion(args: argparse.Namespace) -> int:
    print(script(parser(), "mvlm-cluster", args.shell))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 done, 1 a user's mistake, 2 wrong usage, 70 a bug, or the run's own."""
    top = parser()
    args, overrides = top.parse_known_args(argv)  # argparse gives up on positionals that follow an option
    if args.run is _logs:  # of a pipeline: the steps may follow -f
        args.steps += [word for word in overrides if not word.startswith("-")]
        overrides = [word for word in overrides if word.startswith("-")]
    args.overrides = overrides
    strangers = [word for word in overrides if word.startswith("-") or "=" not in word or not args.takes_overrides]
    if strangers:
        top.error(f"unrecognized arguments: {' '.join(strangers)}")
    try:
        return args.run(args)
    except UserError as error:
        for sentence in error.sentences:
            logger("cluster").error(sentence)
        return ExitCode.MISTAKE
    except BrokenPipeError:  # `logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        return 0
    except UnicodeEncodeError as error:
        logger("cluster").error(not_utf8(error))
        return ExitCode.MISTAKE
    except OSError as error:
        logger("cluster").error(f"{error}: check that file and its disk.")
        return ExitCode.MISTAKE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG


if __name__ == "__main__":
    sys.exit(main())
