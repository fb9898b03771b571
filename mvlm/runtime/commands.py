"""Commands started from Python: their output is passed on as it comes, and their mistakes become exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from mvlm.errors import ExitCode, UserError
from mvlm.runtime.launch import end_with_parent

OWN = ("mvlm: ", "mvlm-data: ")
"""How our commands' own messages begin."""

COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Set by Jupyter: they would make a command draw thousands of progress bars into a pipe."""

STOPPING = "Stopping; what is done is saved first."

RESTARTS = 3
LAST = 20
"""Own messages that are kept: the last one of a command that failed says why."""


def shown(line: str) -> None:
    print(line, flush=True)


def run_command(
    command: Sequence[str], say: Callable[[str], object] = shown, stop: signal.Signals = signal.SIGINT
) -> None:
    """Run a command to its end, and again, up to `RESTARTS` times, if it asks for that by exit code 75.

    Each line of its output is passed to `say`. If this process is interrupted, the command gets the signal `stop` and
    is waited for; the terminal's Ctrl-C, which would end it at once, does not reach it. If this process is killed, as
    when a notebook restarts, it gets SIGTERM: nobody would know of it any more.

    Raises:
        UserError: it failed; its own last message.
    """
    code, said = _run(command, say, stop)
    for _ in range(RESTARTS):
        if code != ExitCode.REQUEUE:
            break
        say("Starting it again: everything was saved.")
        code, said = _run(command, say, stop)
    if code:
        raise UserError(said[-1] if said else _ended(" ".join(command[:4]), code))


def _ended(command: str, code: int) -> str:
    """The message for a command that could not itself say why it ended."""
    if code > 0:
        return f"{command} ended with exit code {code}: run it by itself."
    why = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
    return f"{command} was ended by {signal.Signals(-code).name}{why}: make the same call again, which resumes."


def _run(command: Sequence[str], say: Callable[[str], object], stop: signal.Signals) -> tuple[int, list[str]]:
    """The exit code, and our command's own last messages."""
    calm = {name: value for name, value in os.environ.items() if name not in COLOURS}
    environment = calm | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        process_group=0,
        preexec_fn=end_with_parent,
    )
    assert process.stdout
    said: deque[str] = deque(maxlen=LAST)
    try:
        for line in process.stdout:
            say(line.rstrip("\n"))
            if line.startswith(OWN):
                said.append(line.strip().partition(": ")[2])
        return process.wait(), list(said)
    except KeyboardInterrupt:
        process.send_signal(stop)
        _wait(process, process.stdout, say)
        raise


def _wait(process: subprocess.Popen[str], output: Iterable[str], say: Callable[[str], object]) -> None:
    """Wait until the command has ended, however often this process is interrupted meanwhile: the caller would otherwise
    say too early what was saved."""
    while process.returncode is None:
        try:
            say(STOPPING)
            for line in output:
                say(line.rstrip("\n"))
            process.wait()
        except KeyboardInterrupt:
            continue
