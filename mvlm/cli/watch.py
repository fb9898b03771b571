"""Show the state of a run until it is done or you press Ctrl-C; the run itself is not affected.

examples:
  mvlm watch runs/mine
  mvlm watch /mnt/cluster/runs/mine --once
  mvlm watch runs/mine --once --json

Reads only the run folder, so it works from any machine that sees it, and may be started before the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from mvlm.cli.places import require_no_checkpoint
from mvlm.errors import UserError
from mvlm.watch.screen import screen
from mvlm.watch.status import Status, Watcher

EVERY_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--once", action="store_true", help="show it once; the default if the output is not a terminal")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line with everything that is known"
    )


def run(args: argparse.Namespace) -> int:
    """Show the run's state; returns the exit code.

    Raises:
        UserError: the folder is a checkpoint, or --once was given and it does not exist.
    """
    require_no_checkpoint(args.run_folder)
    watcher = Watcher(args.run_folder)
    status = watcher.look()
    if args.once or not (args.json or sys.stdout.isatty()):
        if status.state == "waiting":
            raise UserError(f"There is no run folder {args.run_folder} yet: give one, or leave --once out to wait.")
        if args.json:
            print(as_json(status))
        else:
            Console().print(screen(status, watcher.history))
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts commands that ignore it
    with suppress(KeyboardInterrupt):
        if args.json:
            follow_as_json(watcher, status)
        else:
            follow(watcher, status)
    return 0


def follow(watcher: Watcher, status: Status) -> None:
    """Show the run's state, updated in place, until it is done."""
    with Live(screen(status, watcher.history), auto_refresh=False) as live:
        while status.state != "done":
            time.sleep(EVERY_S)
            status = watcher.look()
            live.update(screen(status, watcher.history), refresh=True)


def follow_as_json(watcher: Watcher, status: Status) -> None:
    """Print a line now and whenever there is another step, checkpoint, evaluation or state, until it is done."""
    printed: tuple[object, ...] = ()
    while True:
        news = status.state, status.attempt, status.step, status.checkpoint, status.evaluation.get("step")
        if news != printed:
            printed = news
            print(as_json(status), flush=True)
        if status.state == "done":
            return
        time.sleep(EVERY_S)
        status = watcher.look()


def as_json(status: Status) -> str:
    return json.dumps(dataclasses.asdict(status))
