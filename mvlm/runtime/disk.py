"""Whether random reads in a folder are as good as sequential ones: by its file system and disk, or by trying."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from glob import iglob
from itertools import islice
from pathlib import Path

IN_MEMORY = {"tmpfs", "ramfs"}
LOCAL = {"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "squashfs", "xfs", "zfs"}
"""File systems on the machine's own disks; any other may be a network's, or served by a program."""

SLOW_MS = 1.0
"""Random reads that never take less are slow: a solid-state disk needs 0.1, a cloud's disk 0.5, a rotating one 8."""

READS, READ_BYTES, LOOKED_AT = 15, 4096, 1000
SMALL = 1 << 30
"""Bytes that any disk reads in seconds and memory then keeps: no trial, which would depend on what else is running."""

DROPPED = 1 << 21  # bytes around a read: pages that the kernel keeps together are only dropped together


def why_slow(folder: str | Path, proc: Path = Path("/proc/self"), devices: Path = Path("/sys/dev/block")) -> str:
    """Why random reads in a folder or at a URL are slow, as the end of a sentence; "" if they are fast.

    Virtual machines' disks claim to rotate though they do not, and some file systems do not name their disk: then,
    unless the files are `SMALL`, pages that are not in memory are read, which takes a fraction of a second at most.
    """
    if "://" in str(folder):
        return f"{folder} is an object store, not a disk"
    try:
        mounts = (proc / "mountinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return ""
    kind, device = _mount(Path(folder).resolve(), mounts)
    if kind in IN_MEMORY:
        return ""
    if kind not in LOCAL:
        return f"{folder} is on {kind}, which may be remote"
    if _rotational(devices / device) == "0":
        return ""
    files = sorted(islice(_files(Path(folder)), LOOKED_AT))
    if len(files) < LOOKED_AT and sum(file.stat().st_size for file in files) <= SMALL:
        return ""
    milliseconds = 1e3 * seconds_a_read(files)
    return f"a random read in {folder} takes {milliseconds:.2g} ms" if milliseconds > SLOW_MS else ""


def _files(place: Path) -> Iterator[Path]:
    """The files of a folder that images are read from, or those that match a pattern."""
    if not place.is_dir():
        return map(Path, iglob(str(place)))
    return (file for file in place.iterdir() if file.suffix in (".arrow", ".tar", ".parquet"))


def seconds_a_read(files: Sequence[Path]) -> float:
    """The time that a fifth of some random reads stay below, each of a page that no process has mapped.

    A busy machine makes some reads late, a slow disk all of them. 0 if there is nothing to read.
    """
    dice, found = random.Random(0), []
    for path in dice.choices(files, k=READS) if files else ():
        file = os.open(path, os.O_RDONLY)
        try:
            at = dice.randrange(max(1, os.fstat(file).st_size // READ_BYTES)) * READ_BYTES
            os.posix_fadvise(file, at // DROPPED * DROPPED, DROPPED, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            os.pread(file, READ_BYTES, at)
            found.append(time.perf_counter() - began)
        finally:
            os.close(file)
    return sorted(found)[READS // 5] if found else 0.0


def _mount(path: Path, mountinfo: str) -> tuple[str, str]:
    """The file system that a path lies on, and its device as major:minor; of mounts at one place the last counts."""
    found, longest = ("", ""), -1
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, _, place, *_ = left.split()
        at = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place))
        if len(at.parts) >= longest and path.is_relative_to(at):
            found, longest = (right.split()[0], device), len(at.parts)
    return found


def _rotational(device: Path) -> str:
    """The flag `rotational` of a disk, or of the disk that a partition is on; "" if there is none."""
    for place in (device, device / ".."):
        try:
            return (place / "queue/rotational").read_text().strip()
        except OSError:
            continue
    return ""
