"""`mvlm-data`: make, check and inspect shards."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

from mvlm import __version__
from mvlm.errors import OUT_OF_SIGHT, ExitCode, UserError, not_utf8
from mvlm.runtime.completion import SHELLS, script
from mvlm.runtime.examples import describe_subcommands
from mvlm.runtime.log import logger
from mvlm.runtime.output import CLOSED, drop_unwritable, reader_is_gone
from mvlm.runtime.storage import NO_ROOM

from . import commands, commands_looking, commands_making, commands_reshaping

log = logger("mvlm-data")

EXAMPLES = """examples:
  mvlm-data shard folder photos/ --out shards/photos
  mvlm-data shard folder examples/emoji.tar --split train=0.88,eval=0.12 --split-by group --out shards/emoji
  mvlm-data shard webdataset cc3m/*.tar --workers 16 --out shards/cc3m
  mvlm-data shard urls laion/*.parquet --longest-side 512 --out shards/laion
  mvlm-data synth --task caption --count 8400 --seed 0 --split train=0.95,eval=0.05 --out shards/shapes
  mvlm-data shard webdataset "s3://bucket/laion/*.tar" --part 7/64 --out s3://bucket/shards
  mvlm-data count webdataset cc3m/*.tar
  mvlm-data verify shards/cc3m
  mvlm-data row-index shards/cc3m
  mvlm-data stats shards/cc3m --plots cc3m.png
  mvlm-data takedown shards/cc3m --list removed.txt
  mvlm-data preview shards/cc3m --out cc3m.html
  mvlm-data retry shards/cc3m
  mvlm-data merge shards/cc3m shards/sbu --prefix-keys --out shards/both
  mvlm-data split shards/both --split train=0.99,eval=0.01 --out shards/divided
  mvlm-data synth --task vqa --count 8000 --holdout-pairs 4 --split train=0.9,eval=0.1 --out shards/questions
  mvlm-data tokenizer shards/emoji/train --vocab 4096 --out tokenizer.json
  mvlm-data miniature published
  mvlm-data completion bash

See `mvlm-data COMMAND --help` for each.
"""


def parser(described: bool = True) -> argparse.ArgumentParser:
    """The parser of all commands; `described` lists the sources of `shard` and `count`, whose readers import slowly."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("mvlm-data", description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"mvlm-data {__version__}")
    subs = top.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser(subs, described)
    for module in (commands_looking, commands_reshaping, commands_making):
        module.add_parser(subs)
    completion = subs.add_parser("completion", help="print a shell completion script for mvlm-data")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=complete)
    describe_subcommands(subs, EXAMPLES)
    return top


def complete(arguments: argparse.Namespace) -> int:
    print(script(parser(), "mvlm-data", arguments.shell))
    return 0


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which by default would leave temporary folders behind."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for worker in multiprocessing.active_children():
        worker.terminate()  # otherwise exiting would wait for their current work
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGINT, _stop)  # a shell starts background commands with it ignored
    signal.signal(signal.SIGTERM, _stop)
    words = sys.argv[1:] if argv is None else argv
    of_a_source = words[:1] in (["shard"], ["count"])
    described = of_a_source and not {"-h", "--help"}.isdisjoint(words)
    try:
        arguments = parser(described).parse_args(words)
    except SystemExit as ended:
        hint = commands.missing_source_hint(words) if of_a_source and ended.code == ExitCode.USAGE else ""
        if hint:
            log.error(hint)
        raise
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except UserError as error:
        for sentence in error.sentences:
            log.error(sentence)
        return error.exit_code
    except UnicodeEncodeError as error:
        log.error(not_utf8(error))
        return ExitCode.MISTAKE
    except OSError as error:
        code = ExitCode.MISTAKE
        if reader_is_gone(error):
            log.error(CLOSED)
        elif error.errno in NO_ROOM:
            log.error(f"{error}: free some room and run the same command again.")
        elif error.errno in OUT_OF_SIGHT:
            code = ExitCode.REQUEUE
            log.error(f"{error}: run the same command again where that disk can be reached.")
        else:
            log.error(f"{error}: check that file and its disk.")
        drop_unwritable(sys.stdout)
        return code
    except KeyboardInterrupt as stop:
        log.error("Interrupted: the same command again resumes; nothing half-written looks complete.")
        return ExitCode.REQUEUE if isinstance(stop, Terminated) else ExitCode.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG


if __name__ == "__main__":
    sys.exit(main())
