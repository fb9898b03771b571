"""What launchers and their ranks need; imports nothing heavy, so mistakes are reported before torch is imported."""

from __future__ import annotations

import atexit
import ctypes
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import NoReturn

from mvlm.errors import ExitCode

LAUNCHERS = ("deepspeed", "torchrun")
"""As users type them."""
HELD = "MVLM_HELD"
"""Set if the rank, having imported all that it needs, is to wait for a byte on its standard input."""

PR_SET_PDEATHSIG = 1  # of Linux's prctl
LIBC = ctypes.CDLL(None)

LAUNCHER_DIED = "because the launcher has died"
"""The reason that a rank's log gives for stopping."""


def environment() -> dict[str, int]:
    """Rank, local rank and world size as the launcher gave them: deepspeed and torchrun by name, srun by SLURM_*."""
    slurm = "SLURM_PROCID" in os.environ and "RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS") if slurm else ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    values = (int(os.environ.get(name, default)) for name, default in zip(names, (0, 0, 1), strict=True))
    return dict(zip(("rank", "local_rank", "world"), values, strict=True))


def free_port() -> int:
    """A port that nobody listens on, on any interface of this node."""
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])


def is_held() -> bool:
    return HELD in os.environ


def is_released() -> bool:
    """Waits for a word from whoever started this rank; False if that process has ended without one."""
    return bool(sys.stdin.buffer.read(1))


def end_when_told() -> None:
    """Have SIGTERM and SIGUSR1 end this process with 75 if a launcher started it, whatever it is waiting for.

    For ranks with nothing to save. A thread does it: Python's handlers wait until the main thread is back from C.
    """
    if not {"RANK", "SLURM_PROCID"} & os.environ.keys():
        return
    told, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    for number in numbers:
        signal.signal(number, lambda number, frame: None)

    def wait() -> None:
        while os.read(told, 1)[0] not in numbers:
            pass
        os.write(sys.stderr.fileno(), b"Stopped by a signal: start the same command again.\n")
        os._exit(ExitCode.REQUEUE)

    def forget() -> None:
        signal.set_wakeup_fd(-1)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)
    threading.Thread(target=wait, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End this rank with an exit code once its threads and what is registered with `atexit` are done.

    The interpreter is not shut down: gloo's threads outlive their process group, and one that frees a tensor during
    the shutdown would abort the process (pytorch issue 179291).
    """
    threading._shutdown()  # type: ignore[attr-defined]  # typeshed leaves it out
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def typed_command(argv: Sequence[str], ancestors: Iterable[Sequence[str]]) -> str:
    """The command as somebody typed it, for a person to read or repeat.

    Args:
        argv: of this process, a rank.
        ancestors: command lines of the processes that started it, the nearest first.

    Returns:
        The command line of the launcher that was typed, `deepspeed` or `torchrun`, if it runs on this machine;
        otherwise `mvlm` and its arguments.
    """
    own = [word for word in argv[1:] if not word.startswith(("--local_rank", "--local-rank"))]
    typed = ["mvlm", *own]
    for words in ancestors:
        names = [os.path.basename(word) for word in words[: len(words) - len(own)]]
        launchers = [place for place, name in enumerate(names) if name in LAUNCHERS]
        if launchers and list(words[len(names) :]) == own:
            typed = [names[launchers[0]], *words[launchers[0] + 1 :]]
    return shlex.join(typed)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send a signal to this process when its parent ends, in whatever way.

    For a new process this is the `preexec_fn`; the thread that starts it must not end before it.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, number)
