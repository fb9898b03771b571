"""What ranks exchange over: two processes of this machine that reduce a number between them.

`find` starts this file twice; `main` is what each of the two runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from mvlm.check.machine.devices import gpus_of_machine
from mvlm.check.machine.findings import Finding, Options, absent, broken, first_line, works
from mvlm.check.machine.patience import patience

PATIENCE_SECONDS = 20.0
LIMIT_SECONDS = 60.0  # for both, the imports among them
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def find(options: Options) -> Iterator[Finding]:
    yield _reduce("gloo", {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})
    gpus = _usable_gpus() if gpus_of_machine() else 0
    if gpus >= 2:
        yield _reduce("nccl", {"NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN")})
    else:
        yield absent("nccl", f"NCCL is not needed: {'one GPU is' if gpus else 'no GPUs are'} here to use it")


def _usable_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _reduce(backend: str, environment: dict[str, str]) -> Finding:
    if named := _unknown_interface(backend):
        return named
    began = time.monotonic()
    failure = _two_ranks(environment)
    if failure:
        return broken(
            backend,
            f"Two processes on this machine exchange nothing over {backend} ({failure})",
            "see that its own name resolves (/etc/hosts) and no firewall bars the loopback",
        )
    seconds = time.monotonic() - began
    return works(backend, f"Two processes have reduced a number over {backend}, in {seconds:.1f} s in all")


def _unknown_interface(backend: str) -> Finding | None:
    """An interface that the environment names and that is not here."""
    import psutil

    variable = f"{backend.upper()}_SOCKET_IFNAME"
    given, here = os.environ.get(variable, ""), sorted(psutil.net_if_addrs())
    if backend == "nccl" and given.startswith("^"):
        return None
    exact = backend == "gloo" or given.startswith("=")
    for name in filter(None, given.lstrip("=").split(",")):
        if not any(one == name if exact else one.startswith(name) for one in here):
            says = f"{variable}={given} names an interface that is not here: there are {', '.join(here)}"
            return broken(backend, says.replace(": there", ", and there"), f"unset {variable}, or name one of them")
    return None


def _two_ranks(environment: dict[str, str]) -> str | None:
    """Why two of them did not exchange, or None."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "mvlm.check.machine.exchange"],
            env=os.environ | environment | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for rank in range(2)
    ]
    limit = patience(LIMIT_SECONDS)
    deadline = time.monotonic() + limit
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > deadline:
                return f"nothing came within {limit:.0f} s"
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
    failed = next((rank for rank in ranks if rank.returncode or rank.poll()), None)
    said = [rank.communicate()[1] for rank in ranks]
    if failed is None or failed.returncode == 0:
        return None
    return _reason(said[ranks.index(failed)]) or f"exit code {failed.returncode}"


def _reason(said: str) -> str:
    """The last line of a traceback, without gloo's place in its own source."""
    lines = [line for line in said.splitlines() if line.strip()]
    return re.sub(r"\[enforce fail at [^]]*\] ", "", first_line(lines[-1])) if lines else ""


def main() -> int:
    """One of the two ranks: meet the other, and add both numbers up."""
    import torch

    from mvlm.runtime import dist

    seconds = patience(PATIENCE_SECONDS)
    meeting = dist.Meeting(seconds)
    with meeting.group("doctor", [0, 1], seconds):
        total = dist.all_reduce(torch.tensor([1.0 + meeting.rank], device=dist.device()))
        right = float(total) == 3.0
    with contextlib.suppress(ConnectionError):
        meeting.post(f"done/{meeting.rank}", True)
        meeting.read(f"done/{1 - meeting.rank}", seconds)  # rank 0 keeps the store until rank 1 is done
    if not right:
        print(f"1 and 2 were added up to {float(total):g}", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
