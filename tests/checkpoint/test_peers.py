"""Copies in other nodes' memory: two nodes of two real ranks, each node with its own run folder and memory."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from mvlm.checkpoint import peers
from mvlm.checkpoint.assemble import Transfer, plan_transfers
from mvlm.checkpoint.fencing import FencingToken
from mvlm.checkpoint.fetch import fetch_newest
from mvlm.checkpoint.folder_group import FolderGroup, find_folder_group
from mvlm.checkpoint.layout import Entry
from mvlm.checkpoint.mirror import Mirror
from mvlm.checkpoint.newest import newest_whole
from mvlm.checkpoint.peers import PeerCopies, memory_of, partners, require_own
from mvlm.checkpoint.upload import Uploads
from mvlm.config.schema import Checkpoint
from mvlm.runtime import dist
from mvlm.training.checkpoint.save import Saver
from tests.ranks import run_ranks
from tests.training.saver_worker import Trained, save

RUN = Path("run")
RANKS_OF_NODE = 2


class CountingMirror(Mirror):
    """Records which files are downloaded from it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.downloaded: list[str] = []

    def download(self, name: str, path: Path) -> None:
        self.downloaded.append(name)
        super().download(name, path)


def lose_node_1() -> None:
    """Replace it by an empty node, without files on disk or in memory."""
    if dist.rank() == RANKS_OF_NODE:
        shutil.rmtree(RUN)
        shutil.rmtree(memory_of(RUN), ignore_errors=True)
    dist.barrier()


def resumed(mirror: CountingMirror, group: FolderGroup) -> dict[str, object]:
    mirror.downloaded.clear()
    assert fetch_newest(mirror, RUN, group, memory_of(RUN))
    whole = newest_whole(RUN)
    assert (RUN / "checkpoints/latest").read_text() == whole.name
    return {
        "at": whole.name,
        "downloads": list(mirror.downloaded),
        "state": json.loads((whole / "state.json").read_text()),
    }


def begin_attempt(mirror: Mirror, group: FolderGroup, engine: Any) -> tuple[Saver, PeerCopies, Uploads]:
    """Begin an attempt as `mvlm train` does."""
    attempt, config = FencingToken(RUN, mirror, resumes=True, group=group), Checkpoint(keep=1)
    uploads = Uploads(mirror, RUN, config, attempt, group, print, memory_of(RUN))
    copies = PeerCopies(memory_of(RUN), group)
    return Saver(engine, RUN, config, attempt, group, uploads, {"config.toml": b""}, copies), copies, uploads


def save_and_lose_nodes(folder: str) -> int:
    """The test's course on one rank, which writes what it saw to a file."""
    rank = int(os.environ["RANK"])
    here = Path(folder) / f"node-{rank // RANKS_OF_NODE}"
    (here / "shm").mkdir(parents=True, exist_ok=True)
    os.chdir(here)
    peers.SHARED = here / "shm"
    peers.CHUNK_BYTES = 100  # so that files of a few hundred bytes take several
    dist.init()
    mirror = CountingMirror(f"file://{folder}/mirror")
    group = find_folder_group(RUN, mirrored=True)
    memory, engine = memory_of(RUN), Trained()
    saver, copies, uploads = begin_attempt(mirror, group, engine)
    seen: dict[str, object] = {}
    for step in (2, 4):
        save(saver, engine, step)
        copies.drain()
        dist.barrier()
        seen[f"copies of {step}"] = sorted(str(path.relative_to(memory)) for path in memory.rglob("*.*"))
        seen["mode"] = stat.S_IMODE(memory.stat().st_mode)
        uploads.drain()
        if step == 2 and rank == 0:
            mirror.write("checkpoints/best", b"step_00000002.attempt-1")
        dist.barrier()

    lose_node_1()
    seen["a node lost"] = resumed(mirror, group)
    if rank == 0:
        mirror.delete("checkpoints/best")

    shutil.rmtree(Path(folder) / "mirror/checkpoints/step_00000004.attempt-1", ignore_errors=True)
    dist.barrier()
    lose_node_1()
    seen["and its upload"] = resumed(mirror, group)

    saver, copies, uploads = begin_attempt(mirror, group, engine)
    save(saver, engine, 6)
    copies.drain()
    uploads.drain()
    dist.barrier()
    if rank == 0:
        copied = memory / "step_00000006/weights-00002-of-00004.safetensors"
        content = bytearray(copied.read_bytes())
        content[-1] ^= 1
        copied.write_bytes(content)
    lose_node_1()
    seen["and a copy damaged"] = resumed(mirror, group)
    copies.remove()
    dist.barrier()
    seen["left"] = memory.exists()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.close()
    return 0


def test_a_replacement_node_gets_the_lost_files_from_the_next_node(tmp_path: Path) -> None:
    done = run_ranks(save_and_lose_nodes, str(tmp_path), ranks=2 * RANKS_OF_NODE)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2 * RANKS_OF_NODE)]
    for rank, seen in enumerate(ranks):
        other = [2, 3] if rank < RANKS_OF_NODE else [0, 1]
        for step in (2, 4):
            kept = {name for name in seen[f"copies of {step}"] if "weights" in name}
            wrote = [each for each in other if each < 3]  # the last of four ranks has none of the three tensors
            named = {f"weights-{each:05d}-of-00004.safetensors" for each in wrote}
            assert kept == {f"step_{step:08d}/{name}" for name in named}, rank
        assert seen["mode"] == 0o700
        for what in ("a node lost", "and its upload"):
            assert (seen[what]["at"], seen[what]["state"]["step"]) == ("step_00000004", 4), (rank, what)
        assert all("/step_00000002." in name for name in seen["a node lost"]["downloads"])  # of the best alone
        assert seen["and its upload"]["downloads"] == []
        assert seen["and a copy damaged"]["at"] == "step_00000006"
        assert not seen["left"]
    downloads = [name for seen in ranks for name in seen["and a copy damaged"]["downloads"]]
    assert any(name.endswith("weights-00002-of-00004.safetensors") for name in downloads)
    assert "No node has all of step_00000006's weights-00002-of-00004" in done.stderr
    assert done.stderr.count("was made whole from what the nodes hold") == 2


def test_ranks_send_copies_around_a_ring_of_nodes() -> None:
    nodes = [(0, 1, 2), (3, 4), (5,)]
    assert [partners(nodes, rank) for rank in range(6)] == [
        *((3, [5]), (4, []), (3, [])),
        *((5, [0, 2]), (5, [1])),
        (0, [3, 4]),
    ]


def test_each_file_is_sent_from_a_node_that_has_it_to_those_that_lack_it() -> None:
    entries = [Entry(name, 1, "") for name in ("a", "b", "c")]
    held = [((0, 1), ["a"]), ((0, 1), ["b"]), ((2,), ["a"]), ((3,), [])]
    transfers, lacking = plan_transfers(entries, held)
    assert lacking == ["c"]
    assert transfers == [Transfer(entries[0], 0, 3), Transfer(entries[1], 1, 2), Transfer(entries[1], 1, 3)]


def test_memory_that_other_users_may_read_is_not_used(tmp_path: Path) -> None:
    require_own(tmp_path / "mine")
    require_own(tmp_path / "mine")
    (tmp_path / "mine").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "link"):
        with pytest.raises(PermissionError, match="not this user's alone"):
            require_own(tmp_path / name)
