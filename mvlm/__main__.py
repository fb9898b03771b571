"""The `mvlm` command."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Container
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from mvlm import __version__
from mvlm.cli.suggest import suggest_command, suggest_option
from mvlm.errors import ExitCode, UserError, cannot_write, not_utf8
from mvlm.runtime.cpu import keep_freed_memory
from mvlm.runtime.imports import uncollected
from mvlm.runtime.launch import end_when_told, environment, leave
from mvlm.runtime.log import rank_log
from mvlm.runtime.output import CLOSED, drop_unwritable, reader_is_gone
from mvlm.runtime.storage import NO_ROOM

COMMANDS = {
    "train": "pretrain or fine-tune a model, or resume a run",
    "evaluate": "evaluate a trained model on held-out data",
    "dictionary": "make the weights of an image encoder from a corpus's own pictures",
    "average": "average the weights of several checkpoints and measure the result",
    "predict": "try a trained model on your own images and sentences",
    "index": "embed the images of a corpus for search",
    "score": "score every row of a corpus with a trained model, to select rows by their scores",
    "search": "find images of a corpus by a sentence or an image",
    "serve": "try a trained model on a web page",
    "watch": "show the state of a running job",
    "report": "write an HTML page about a run: curves, numbers and examples",
    "export": "export a model to transformers, ONNX or torch.export",
    "stage": "append a stage to a run, or show its stages and how often each has seen its rows",
    "decay": "decay a run's learning rate from several checkpoints and draw the curve",
    "reproduce": "reproduce a table of the paper from the published data sets",
    "plan": "calculate a run's memory, time and communication before it starts",
    "config": "explain the keys of a run TOML, or print a JSON schema for editors",
    "doctor": "test what works on this machine",
    "check": "find out whether a run can start or resume, without training",
    "preflight": "find slow and dead nodes before a run",
    "kernels": "show which implementation each operation uses on this machine",
    "completion": "print a shell completion script for these commands",
}
"""Modules of mvlm.cli, whose docstrings are their --help, each with its summary. Only the one asked for is imported,
since some take seconds."""


INFERRING = frozenset({"evaluate", "index", "predict", "report", "score", "search", "serve"})
"""Commands that run a trained model in a process that does nothing else."""

SHARED = frozenset({"evaluate", "index", "score"})
"""Commands whose work a launcher's ranks share, and which have nothing to save when they are stopped."""

EXTRAS = {"serve": ("fastapi", "uvicorn")}
"""Commands that need the optional extra of the same name, and the packages that it installs."""


def command_line(words: Container[str]) -> argparse.ArgumentParser:
    """The parser, with arguments only for the commands that occur among the words."""
    parser = argparse.ArgumentParser(prog="mvlm", description="Pretrain and try masked vision and language models.")
    parser.add_argument("--version", action="version", version=f"mvlm {__version__}")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from the launcher
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.set_defaults(takes_overrides=False)
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in words:
            with uncollected():
                module = _module(name)
            command.description, _, command.epilog = (module.__doc__ or "").partition("\n\n")
            command.set_defaults(run=module.run, parser=command)
            module.add_arguments(command)
    return parser


def _module(name: str) -> ModuleType:
    """A command's module; raises `UserError` if an optional package that it needs is not installed."""
    try:
        return import_module(f"mvlm.cli.{name}")
    except ModuleNotFoundError as error:
        if name not in EXTRAS or error.name not in EXTRAS[name]:
            raise
        raise UserError(f"mvlm {name} needs {error.name}: pip install 'mvlm[{name}]'.") from None


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a user's mistake or bad data, 2 wrong usage, 70 a bug,
    75 start it again, 130 Ctrl-C; docs/exit_codes.md says what to do."""
    words = sys.argv[1:] if argv is None else argv
    try:
        parser = command_line(words)
    except UserError as error:
        return _report_mistake(error)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        parser.error(suggest_command(words[0], COMMANDS))
    args, overrides = parser.parse_known_args(argv)  # argparse gives up on positionals that follow an option
    args.overrides = overrides
    unknown = [word for word in overrides if word.startswith("-") or not args.takes_overrides]
    if unknown:
        if any(word.startswith("--") for word in unknown):
            args.parser.error(suggest_option(overrides, args.parser.format_help(), args.takes_overrides))
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _report_mistake(error)
    except UnicodeEncodeError as error:
        return _report_mistake(not_utf8(error))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if reader_is_gone(error):
            return _report_mistake(UserError(CLOSED))
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            what = str(error.filename or "The output")
            return _report_mistake(cannot_write(what, error))
        with suppress(OSError):
            traceback.print_exc()
        return ExitCode.BUG


def _report_mistake(error: UserError) -> int:
    if environment()["rank"]:
        time.sleep(5)  # the launcher kills all ranks at the first exit: let rank 0 report the same mistake first
    for sentence in error.sentences:
        rank_log.error(sentence)
    return error.exit_code


def run() -> NoReturn:
    """Run the command that was typed, and end this process with its exit code."""
    typed = sys.argv[1:3]  # the command comes first, or after the launcher's --local_rank
    if not SHARED.isdisjoint(typed):
        end_when_told()
    if not INFERRING.isdisjoint(typed):
        keep_freed_memory()  # otherwise a third of the time of `mvlm index` goes to the kernel, zeroing pages
    code = main()
    drop_unwritable(sys.stdout)
    drop_unwritable(sys.stderr)
    if environment()["world"] > 1:
        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
