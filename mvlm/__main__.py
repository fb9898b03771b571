"""The `mvlm` command."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Container
from importlib import import_module

from mvlm.errors import ExitCode, UserError
from mvlm.runtime.imports import uncollected
from mvlm.runtime.launch import environment
from mvlm.runtime.log import rank_log

COMMANDS = {
    "train": "pretrain a model, or fine-tune one",
    "evaluate": "measure a trained model on held-out shards",
    "predict": "try a trained model on your own images and sentences",
    "index": "embed a corpus's images, to be searched",
    "search": "find images of a corpus by a sentence or by a picture",
    "serve": "show a trained model on a web page, to be tried by hand",
    "watch": "show how a running job stands",
    "report": "write a page about a run: curves, numbers and examples",
    "export": "write a model for transformers, ONNX or torch.export",
    "plan": "work out a run's memory, time and communication before it starts",
    "doctor": "try what of this machine works",
    "check": "tell whether a run can start or resume, without training",
    "preflight": "find the slow or dead node before a run",
    "kernels": "show who computes what on this machine",
    "completion": "print what a shell needs to complete these commands",
}
"""Modules of mvlm.cli, and what each does. Only the one that is asked for is imported: for some it takes seconds."""


def command_line(words: Container[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of those commands alone that are among the words."""
    parser = argparse.ArgumentParser(prog="mvlm", description="Pretrain and try masked vision and language models.")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.set_defaults(takes_overrides=False)
    for name, does in COMMANDS.items():
        command = subparsers.add_parser(name, help=does, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in words:
            with uncollected():
                module = import_module(f"mvlm.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 done, 1 a mistake or bad data, 2 wrong usage, 70 a bug, 75 start it again,
    130 Ctrl-C; docs/exit_codes.md says what to do."""
    parser = command_line(sys.argv[1:] if argv is None else argv)
    args, overrides = parser.parse_known_args(argv)  # argparse gives up on positionals that follow an option
    args.overrides = overrides
    strangers = [word for word in overrides if word.startswith("-") or not args.takes_overrides]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    try:
        return args.run(args)
    except UserError as error:
        return _report_mistake(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG


def _report_mistake(error: UserError) -> int:
    if environment()["rank"]:
        time.sleep(5)  # the launcher ends all at the first exit: let rank 0, which met the same mistake, speak first
    rank_log.error(error)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
