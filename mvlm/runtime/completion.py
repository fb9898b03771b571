"""Scripts by which bash and zsh complete a command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh")


def script(parser: argparse.ArgumentParser, command: str, shell: str) -> str:
    """What the shell is to source; arguments that are not choices, numbers or flags are completed as paths."""
    import shtab  # here, since every command builds its parser

    def mark(part: argparse.ArgumentParser) -> None:
        for action in part._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    mark(sub)
            elif action.nargs != 0 and not action.choices and action.type in (None, Path):
                completed: Any = action
                completed.complete = shtab.FILE

    mark(parser)
    parser.prog = command
    return shtab.complete(parser, shell)
