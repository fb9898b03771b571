"""Which folders can be read at random, from what the kernel says about file system and disk, and from trials."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mvlm.runtime import disk
from mvlm.runtime.disk import SMALL, seconds_a_read, why_slow

MOUNTS = """22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / {base}/memory rw - tmpfs tmpfs rw
24 22 0:44 / {base}/net rw shared:7 master:2 - nfs4 server:/export rw,vers=4.2
25 24 8:17 / {base}/net/inside\\040it rw - xfs /dev/sdb1 rw
26 22 0:50 / {base}/over rw - fuse.sshfs host: rw
27 22 8:17 / {base}/over rw - ext4 /dev/sdb1 rw
28 22 0:51 / {base}/unnamed rw - overlay overlay rw
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """A rotating root disk, whose partition has no flag of its own, and a second disk that does not rotate."""
    (tmp_path / "mountinfo").write_text(MOUNTS.format(base=tmp_path))
    for name, turns in (("254:0", "1"), ("sdb", "0")):
        (tmp_path / "dev" / name / "queue").mkdir(parents=True)
        (tmp_path / "dev" / name / "queue/rotational").write_text(f"{turns}\n")
    (tmp_path / "dev/sdb/sdb1").mkdir()
    (tmp_path / "dev/8:17").symlink_to(tmp_path / "dev/sdb/sdb1")
    return {"proc": tmp_path, "devices": tmp_path / "dev"}


@pytest.mark.parametrize(
    ("place", "slow"),
    [
        ("memory/shards", ""),
        ("net/shards", "is on nfs4, which may be remote"),
        ("net/inside it/shards", ""),  # a solid-state disk mounted inside the network's folder
        ("over/shards", ""),  # the last mount hides the one before it
        ("shards", "takes 20 ms"),
        ("unnamed/shards", "takes 20 ms"),  # the mount names no disk
    ],
)
def test_the_kernel_is_believed_unless_it_says_that_a_disk_rotates(
    machine: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, slow: str
) -> None:
    (tmp_path / place).mkdir(parents=True)
    with (tmp_path / place / "000000.arrow").open("wb") as shard:
        shard.truncate(SMALL + 1)
    monkeypatch.setattr(disk, "seconds_a_read", lambda files: 0.02)
    found = why_slow(tmp_path / place, **machine)
    assert slow in found and bool(found) == bool(slow)
    monkeypatch.setattr(disk, "seconds_a_read", lambda files: 0.0003)
    assert bool(why_slow(tmp_path / place, **machine)) == ("nfs4" in slow)


def test_a_small_corpus_on_a_local_disk_is_not_slow_even_on_a_busy_machine(
    machine: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "seconds_a_read", lambda files: 0.02)
    for place, slow in (("shards", False), ("net/shards", True)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "000000.arrow").write_bytes(b"a row")
        assert bool(why_slow(tmp_path / place, **machine)) == slow


def test_a_url_is_not_a_disk() -> None:
    assert why_slow("s3://bucket/shards") == "s3://bucket/shards is an object store, not a disk"


def test_mounts_agree_with_stat(tmp_path: Path) -> None:
    for place in ("/dev/shm", "/proc", str(tmp_path)):
        words = ["stat", "-f", "-c", "%T", place]
        known = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        kind, _ = disk._mount(Path(place), Path("/proc/self/mountinfo").read_text())
        assert known.startswith(kind.rstrip("234")) or (known, kind[:4]) == ("ext2/ext3", "ext4")


def test_reads_are_timed(tmp_path: Path) -> None:
    (tmp_path / "000000.arrow").write_bytes(bytes(1_000_000))
    (tmp_path / "000001.arrow").write_bytes(b"short")
    assert 0 < seconds_a_read(sorted(tmp_path.glob("*.arrow"))) < 60
    assert seconds_a_read([]) == 0
