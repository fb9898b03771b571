"""Probes of disks (room and speed), shared memory, open files and the clock."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mvlm
from mvlm.check.folders import Folders
from mvlm.check.report import Finding, absent, broken, works
from mvlm.errors import first_line

LEAST_FREE_BYTES = 1e9
LEAST_SPEED = 5e6
"""Bytes a second: a checkpoint of the paper's model, 2.5 GB, would take over eight minutes."""
WRITTEN_BYTES = 1 << 26
CHUNK_BYTES = 1 << 22
WRITING_SECONDS = 20.0
LEAST_SHARED_BYTES = 1e9
LEAST_FILES = 1024
"""A rank keeps 128 shards of each corpus open, besides what its libraries open."""
CLOCK_SECONDS = 5.0
DAY = 86400.0


def find(folders: Folders) -> Iterator[Finding]:
    yield _disk("run folder", folders.disk, "set run.dir to another disk")
    yield _disk("TMPDIR", Path(tempfile.gettempdir()), "set TMPDIR to another disk")
    yield _shared_memory()
    yield _open_files()


def _disk(subject: str, place: Path, otherwise: str) -> Finding:
    """Whether files can be written in a folder, and how fast."""
    try:
        free, speed = shutil.disk_usage(place).free, _write(place)
    except OSError as error:
        says = f"Nothing can be written to {place} ({first_line(error)})"
        return broken(subject, says, f"free some room or check its permissions, or {otherwise}")
    facts = {"folder": str(place), "free_bytes": free, "bytes_per_s": speed}
    if free < LEAST_FREE_BYTES:
        return broken(subject, f"{place} has {free / 1e9:.2g} GB free", f"make room, or {otherwise}", facts)
    if speed < LEAST_SPEED:
        return broken(subject, f"{place} is written at {speed / 1e6:.2g} MB/s", otherwise, facts)
    says = f"{place} has {free / 1e9:.3g} GB free and is written at {speed / 1e6:.3g} MB/s"
    return works(subject, says, facts=facts)


def _write(folder: Path) -> float:
    """Bytes a second that reach the disk, by a file that is then deleted."""
    chunk, written, began = os.urandom(CHUNK_BYTES), 0, time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".mvlm-doctor-", buffering=0) as file:
        while written < WRITTEN_BYTES and time.monotonic() - began < WRITING_SECONDS:
            written += file.write(chunk)
            os.fsync(file.fileno())
    return written / (time.monotonic() - began)


def _shared_memory() -> Finding:
    """/dev/shm, through which NCCL and Ray exchange within a machine; our loader processes have memory of their own."""
    shared = Path("/dev/shm")
    try:
        usage = shutil.disk_usage(shared)
    except OSError as error:
        says = f"There is no shared memory ({first_line(error)}), which NCCL and Ray need"
        return absent("shared memory", says, "mount a tmpfs at /dev/shm")
    facts = {"bytes": usage.total, "free_bytes": usage.free}
    if usage.free < LEAST_SHARED_BYTES:
        says = (
            f"{shared} has {usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB free, which may be too little for "
            "NCCL and Ray"
        )
        remedy = "delete what dead processes left there, or give the container --shm-size=8g or --ipc=host"
        return broken("shared memory", says, remedy, facts)
    return works("shared memory", f"{shared} has {usage.free / 1e9:.3g} GB free", facts=facts)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    if soft < LEAST_FILES and soft != resource.RLIM_INFINITY:
        says = f"A process may open {soft} files, and loaders with many shards need {LEAST_FILES}"
        remedy = f"ulimit -n {hard}" if hard >= LEAST_FILES else "raise nofile in /etc/security/limits.conf"
        return broken("open files", says, remedy, facts)
    return works("open files", f"A process may open {soft:,} files", facts=facts)


def find_clock(folders: Folders) -> Iterator[Finding]:
    """Compare the clock with when this program was installed, and with that of the disk that a run would write to."""
    now, written = time.time(), Path(mvlm.__file__).stat().st_mtime
    if now < written - DAY:
        says = f"The clock says {time.strftime('%F', time.localtime(now))}, before this program was installed"
        yield broken("clock", says, "set it with NTP or chrony")
        return
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=folders.disk, prefix=".mvlm-doctor-") as file:
        file.write(b"now")
        file.flush()
        off = os.fstat(file.fileno()).st_mtime - time.time()
        if abs(off) > CLOCK_SECONDS:
            says = f"The disk of {folders.disk} is {off:+.0f} s off this machine's clock"
            yield broken("clock", says, "set both clocks with NTP or chrony", {"off_s": off})
            return
    yield works("clock", "The clock is plausible and agrees with the disk's; preflight compares it across nodes")
