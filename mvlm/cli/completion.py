"""`mvlm completion SHELL`: what bash or zsh needs to complete `mvlm`."""

from __future__ import annotations

import argparse

from mvlm.runtime.completion import SHELLS, script

EXAMPLES = """examples:
  mvlm completion bash > ~/.local/share/bash-completion/completions/mvlm
  mvlm completion zsh > "${fpath[1]}/_mvlm"

`mvlm-data completion` and `mvlm-cluster completion` do the same for those two. docs/completion.md has more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print a script that completes commands, options, choices and paths."
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    from mvlm.__main__ import COMMANDS, command_line

    print(script(command_line(COMMANDS), "mvlm", args.shell))
    return 0
