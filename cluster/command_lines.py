"""Command lines of this project, read by their own parsers before anything is queued."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mvlm.config.shipped import package
from mvlm.errors import UserError

from .environment import inherited
from .ray.client import import_path

PARSE = f"""
import contextlib, io, json, sys
from {package("data_tools")}.__main__ import parser
from mvlm.__main__ import command_line
for name, words in json.load(sys.stdin).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            if words[0] == "mvlm":
                command_line(words[1:]).parse_args(words[1:])
            else:
                parser().parse_args(words[1:])
    except SystemExit as end:
        if end.code:
            print(json.dumps([name, said.getvalue().strip().splitlines()[-1]]))
    except Exception as error:
        print(json.dumps([name, str(error)]))
"""
"""Reads the command lines of steps as their programs will, to find an unknown option before other steps take hours."""


def require_works(words: Sequence[str], where: str) -> None:
    """Raises `UserError` if the program refuses its command line; `where` names the key that holds it."""
    if why := refused({where: words}).get(where):
        raise UserError(f"{where} is not a command line that works ({why.rpartition('error: ')[2]}): fix it.")


def refused(words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The command lines that their parsers refuse, by name, and why.

    Raises:
        UserError: the parsers cannot be asked.
    """
    if not words:
        return {}
    environment = inherited() | {"PYTHONPATH": import_path()}
    asked = [sys.executable, "-c", PARSE]
    done = subprocess.run(asked, input=json.dumps(words), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"The commands of the steps cannot be checked: {done.stderr.strip().splitlines()[-1]}.")
    return dict(json.loads(line) for line in done.stdout.splitlines())
