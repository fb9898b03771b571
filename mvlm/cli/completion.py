"""Print a script that completes commands, options, choices and paths.

examples:
  mvlm completion bash > ~/.local/share/bash-completion/completions/mvlm
  mvlm completion zsh > "${fpath[1]}/_mvlm"

`mvlm-data completion` and `mvlm-cluster completion` do the same for those commands. More in docs/completion.md.
"""

from __future__ import annotations

import argparse

from mvlm.runtime.completion import SHELLS, script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    from mvlm.__main__ import COMMANDS, command_line

    print(script(command_line(COMMANDS), "mvlm", args.shell))
    return 0
