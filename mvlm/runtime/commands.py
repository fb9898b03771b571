"""Commands started from Python: their output is passed on as it comes, and their mistakes become exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from mvlm.errors import ExitCode, UserError
from mvlm.runtime.launch import end_with_parent

OWN = ("mvlm: ", "data_tools: ")
"""How the sentences begin that our commands say of themselves."""

COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Set by Jupyter: they would have a command draw thousands of progress bars into a pipe."""

STOPPING = "Stopping; what is done is saved first."

RESTARTS = 3
LAST = 20
"""Of them kept: a command that fails has said why."""


def shown(line: str) -> None:
    print(line, flush=True)


def run_command(
    command: Sequence[str], say: Callable[[str], object] = shown, stop: signal.Signals = signal.SIGINT
) -> None:
    """Run a command to its end, and again, up to `RESTARTS` times, where it asks for that by exit code 75.

    Each line of what it says is passed to `say`. Where this process is interrupted, the command gets the
    signal `stop`, and its end is waited for. It is out of reach of the terminal's Ctrl-C, which would end it at once.
    Where this process is killed, as by the restart of a notebook, it gets SIGTERM: nobody would know of it any more.

    Raises:
        UserError: it has failed; in its own last words.
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
    """What is to be said of a command that could not say itself why it ended."""
    if code > 0:
        return f"{command} ended with exit code {code}: run it by itself."
    why = ", as happens where memory runs out" if code == -signal.SIGKILL else ""
    return f"{command} was ended by {signal.Signals(-code).name}{why}: make the same call again, which resumes."


def _run(command: Sequence[str], say: Callable[[str], object], stop: signal.Signals) -> tuple[int, list[str]]:
    """The exit code, and the last sentences of mvlm's own."""
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
    """Until it has ended, however often this process is interrupted meanwhile: whoever called it says what was saved,
    and would say so too early."""
    while process.returncode is None:
        try:
            say(STOPPING)
            for line in output:
                say(line.rstrip("\n"))
            process.wait()
        except KeyboardInterrupt:
            continue
