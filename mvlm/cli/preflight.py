"""Measure every node and every pair of nodes, under the launcher of the coming run.

examples:
  mvlm-cluster preflight job.toml --on slurm
  srun -N 4 --ntasks-per-node 8 python -m mvlm preflight run.toml --json preflight.json
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint node1:29500 -m mvlm preflight run.toml

Takes about a minute, plus a second or two for each node beyond the thirtieth. Exits with 1 and a sentence that names
the node if one is missing, dead, slow or different from the others.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvlm preflight RUN.toml [--json FILE] [--timeout SECONDS] [key=value ...]"
    parser.add_argument("config", metavar="RUN.toml", help="the run's configuration")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rank 0 writes everything to this file")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for all ranks to join (default: 60); a pair has a quarter of it to answer",
    )
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Measure, and print on rank 0; the exit code is 1 if anything is wrong.

    Raises:
        UserError: the configuration is wrong, rank 0 cannot be reached, or (on rank 0) something is wrong.
    """
    from mvlm.check.nodes import tables
    from mvlm.check.nodes.check import survey
    from mvlm.check.nodes.rollcall import RollCall
    from mvlm.check.nodes.verdict import findings
    from mvlm.check.report import Report
    from mvlm.cli.output import write_json
    from mvlm.config.load import load_config
    from mvlm.errors import UserError
    from mvlm.runtime import network

    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout:g}: give a number of seconds above 0.")
    config = load_config(args.config, args.overrides)
    network.prepare()
    calls = RollCall(socket.gethostname(), args.timeout)
    found = survey(calls, Path(config.run.dir), bool(config.checkpoint.mirror), args.timeout)
    if found is None:
        return calls.close(1)
    report = Report("preflight")
    report.wrong("nodes", *findings(found))
    code: int = report.exit_code
    try:
        print(network.describe() or f"network: {network.adapters()}")
        tables.show(found)
        write_json(args.json, tables.as_json(found, report.problems))
        for sentence in report.problems[1:]:
            print(f"also: {sentence}")
        count = len(report.problems)
        print(f"preflight: {f'{count} finding(s)' if count else 'all is well'}", flush=True)
    finally:
        code = calls.close(code)
    if report.problems:
        raise UserError(*report.problems)
    return code
