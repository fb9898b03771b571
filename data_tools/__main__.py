"""`python -m data_tools`: make, check and inspect shards."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback

from data_tools import commands, commands_tools
from mvlm.errors import ExitCode, UserError
from mvlm.runtime.completion import SHELLS, script
from mvlm.runtime.log import logger

log = logger("data_tools")

EXAMPLES = """examples:
  python -m data_tools shard folder photos/ --out shards/photos
  python -m data_tools shard folder examples/emoji.tar --split train=0.88,eval=0.12 --split-by group --out shards/emoji
  python -m data_tools shard webdataset cc3m/*.tar --workers 16 --out shards/cc3m
  python -m data_tools synth --task caption --count 8400 --seed 0 --split train=0.95,eval=0.05 --out shards/shapes
  python -m data_tools verify shards/cc3m
  python -m data_tools row-index shards/cc3m
  python -m data_tools stats shards/cc3m --plots cc3m.png
  python -m data_tools preview shards/cc3m --out cc3m.html
  python -m data_tools retry shards/cc3m
  python -m data_tools merge shards/cc3m shards/sbu --prefix-keys --out shards/both
  python -m data_tools split shards/both --split train=0.99,eval=0.01 --out shards/divided
  python -m data_tools synth --task vqa --count 8000 --holdout-pairs 4 --split train=0.9,eval=0.1 --out shards/questions
  python -m data_tools tokenizer shards/emoji/train --vocab 4096 --out tokenizer.json

See `python -m data_tools COMMAND --help` for each.
"""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m data_tools", description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    subs = top.add_subparsers(metavar="COMMAND", required=True)
    for module in (commands, commands_tools):
        module.add_parser(subs)
    completion = subs.add_parser("completion", help="print a shell completion script for mvlm-data")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=complete)
    return top


def complete(arguments: argparse.Namespace) -> int:
    print(script(parser(), "mvlm-data", arguments.shell))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts commands that ignore it
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        for sentence in error.sentences:
            log.error(sentence)
        return error.exit_code
    except OSError as error:
        log.error(f"{error}: check that file and its disk.")
        return ExitCode.MISTAKE
    except KeyboardInterrupt:
        log.error("Interrupted: the same command again resumes; nothing half-written looks complete.")
        return ExitCode.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG


if __name__ == "__main__":
    sys.exit(main())
