"""Probes of what ranks exchange over: two processes on this machine reduce a number between them."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context

from mvlm.check.folders import Folders
from mvlm.check.machine.devices import gpus_of_machine, usable_gpus
from mvlm.check.machine.patience import patience
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line
from mvlm.runtime.launch import free_port

PATIENCE_SECONDS = 20.0


def find(folders: Folders) -> Iterator[Finding]:
    yield _reduce("gloo", {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})
    gpus = usable_gpus() if gpus_of_machine() else 0
    if gpus >= 2:
        yield _reduce("nccl", {"NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN")})
    else:
        yield absent("nccl", f"NCCL is not needed: {'one GPU is' if gpus else 'no GPUs are'} here to use it")


def _reduce(backend: str, environment: dict[str, str]) -> Finding:
    if named := _unknown_interface(backend):
        return named
    began = time.monotonic()
    failure = _two_ranks(environment)
    if failure:
        return broken(
            backend,
            f"Two processes on this machine cannot exchange over {backend} ({failure})",
            "check that the machine's own name resolves (/etc/hosts) and that no firewall blocks the loopback",
        )
    seconds = time.monotonic() - began
    return works(backend, f"Two processes reduced a number over {backend}, in {seconds:.1f} s altogether")


def _unknown_interface(backend: str) -> Finding | None:
    """A finding if the environment names an interface that is not here."""
    import psutil

    variable = f"{backend.upper()}_SOCKET_IFNAME"
    given, here = os.environ.get(variable, ""), sorted(psutil.net_if_addrs())
    if backend == "nccl" and given.startswith("^"):
        return None
    exact = backend == "gloo" or given.startswith("=")
    for name in filter(None, given.lstrip("=").split(",")):
        if not any(one == name if exact else one.startswith(name) for one in here):
            says = f"{variable}={given} names an interface that is not here, and there are {', '.join(here)}"
            return broken(backend, says, f"unset {variable}, or name one of them")
    return None


def _two_ranks(environment: dict[str, str]) -> str | None:
    """Why two ranks could not exchange, or None."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with get_context("spawn").Pool(2) as pool:  # leaving it ends both
        try:
            list(pool.imap_unordered(partial(_add_up, environment | place), range(2)))
        except Exception as error:  # torch raises many kinds
            return re.sub(r"\[enforce fail at [^]]*\] ", "", first_line(error))  # without the line of gloo's source
    return None


def _add_up(environment: dict[str, str], rank: int) -> None:
    """One of the two ranks: meet the other, and add up both numbers."""
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}  # before torch is imported
    import torch

    from mvlm.runtime import dist
    from mvlm.runtime.rendezvous import Rendezvous

    seconds = patience(PATIENCE_SECONDS)
    rendezvous = Rendezvous(seconds)
    with dist.group(rendezvous, "doctor", [0, 1], seconds):
        total = float(dist.all_reduce(torch.tensor([1.0 + rank], device=dist.device())))
    with contextlib.suppress(ConnectionError):
        rendezvous.post(f"done/{rank}", True)
        rendezvous.read(f"done/{1 - rank}", seconds)  # rank 0 keeps the store until rank 1 is done
    if total != 3.0:
        raise RuntimeError(f"1 and 2 were added up to {total:g}")
