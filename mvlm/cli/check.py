"""Find everything that would keep a run from starting or resuming, without training.

examples:
  mvlm check run.toml
  mvlm check run.toml --deepspeed_config ds_configs/zero2.json --world 64 train.global_batch=4096
  mvlm check run.toml --deep --json

Writes nothing and needs no GPU. Exits with 1 if anything is wrong. More in docs/doctor.md.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from functools import partial

from mvlm.runtime.imports import uncollected
from mvlm.runtime.launch import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvlm check RUN.toml [--deepspeed_config JSON] [--world N] [--deep] [--json] [key=value ...]"
    parser.add_argument("config", metavar="RUN.toml", help="the run's configuration")
    parser.add_argument("--deepspeed_config", "--deepspeed-config", metavar="JSON", help="to check against the TOML")
    parser.add_argument(
        "--world", type=_ranks, metavar="N", help="ranks the run will have (default: the launcher's, or 1)"
    )
    parser.add_argument("--deep", action="store_true", help="read all shards and checkpoints to verify their hashes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.set_defaults(takes_overrides=True)


def _ranks(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of ranks")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Check and print; the exit code is 1 if anything is wrong."""
    from mvlm.check.reading import read_run
    from mvlm.check.report import Report

    out = sys.stdout
    report = Report("check", tell=None if args.json else partial(print, file=out, flush=True))
    with redirect_stdout(sys.stderr):  # some libraries print when they are imported
        given = read_run(report, args.config, args.overrides, args.deepspeed_config, args.deep)
        if given.config:
            with uncollected():  # takes seconds, so only once paths and keys are known to be right
                from mvlm.check.everything import check_given

            check_given(report, given, args.world or environment()["world"], args.deep)
    print(report.as_json() if args.json else report.closing())
    return report.exit_code
