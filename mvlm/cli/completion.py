"""`mvlm completion SHELL`: what bash or zsh needs to complete `mvlm`."""

from __future__ import annotations

import argparse

from mvlm.runtime.completion import SHELLS, script

EXAMPLES = """examples:
  mvlm completion bash > ~/.local/share/bash-completion/completions/mvlm
  mvlm completion zsh > "${fpath[1]}/_mvlm"

`mvlm-data completion` and `mvlm-cluster completion` do the same for those two. docs/completion.md has more.
"""


def add_parser(subparsers: argparse._SubParsersAction, does: str) -> None:
    """Add `completion` to the command line."""
    parser = subparsers.add_parser(
        "completion",
        help=does,
        description="Print a script that completes commands, options, choices and paths.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from mvlm.__main__ import COMMANDS, command_line

    print(script(command_line(COMMANDS), "mvlm", args.shell))
    return 0
