"""A script by which bash or zsh completes `mvlm-cluster`."""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ("bash", "zsh")


def script(parser: argparse.ArgumentParser, command: str, shell: str) -> str:
    """What the shell has to source; job files and folders are completed as paths."""
    import shtab  # only here, since every command builds its parser

    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for sub in commands.choices.values():
        for action in sub._actions:
            if action.nargs != 0 and not action.choices:
                completed: Any = action
                completed.complete = shtab.FILE
    parser.prog = command
    return shtab.complete(parser, shell)
