"""One rank as a launcher starts it: `python -m cluster.rank FOLDER COMMAND...`, in the folder of its attempt.

Its output goes to a file of its own, and it records how it ended as an empty file exit-CODE, because launchers end with
codes of their own: torchrun with 1 whatever its ranks did, srun with 1 for a node that is gone. If no COMMAND is given,
it is read from FOLDER/command, which spares it the shells of pdsh and ssh.

This file imports nothing of the project: DeepSpeed's launcher for SLURM runs it as a script.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
AGAIN_SECONDS = 1


def main(argv: list[str]) -> int:
    """The exit code of the command, as a shell gives it.

    A stop signal that comes before the command handles it is held back until it does, or it would die of it.
    """
    folder, command = Path(argv[0]), argv[1:]
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if not command:
        command = [os.fsdecode(word) for word in (folder / "command").read_bytes().split(b"\0")[:-1]]
        if rank == 0:
            (folder / "rank-00000.pid").write_text(str(os.getpid()), encoding="utf-8")
    started: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if started and _listens(started[0]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(started[0], signal.SIGTERM)
        else:
            signal.alarm(AGAIN_SECONDS)

    for number in (*STOP_SIGNALS, signal.SIGALRM):
        signal.signal(number, stop)
    with open(folder / f"rank-{rank:05d}.log", "ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_ignore_stop_signals)
    started.append(child.pid)
    code = child.wait()
    signal.alarm(0)
    code = code if code >= 0 else 128 - code
    (folder / f"exit-{code}").touch()
    return code


def _listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> signal.SIGTERM - 1 & 1)
    return False


def _ignore_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
