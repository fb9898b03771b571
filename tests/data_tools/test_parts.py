"""Parts: cut by the source alone, made by anybody, joined into the bytes that one process writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made import photo, quarantine, run, tree, write_captions, write_folder

from data_tools.__main__ import main
from data_tools.equal import EqualJoin
from data_tools.origin import open_source
from data_tools.part import cut
from data_tools.pipeline import Options
from data_tools.sharding import parts_of
from data_tools.store.folder import FolderStore
from data_tools.task import PartJob, prune_again, run_part

OPTIONS = ("--shard-mb", 0.01, "--split", "train=0.6,eval=0.4", "--dedup", "exact", "--workers", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 records with equal images, far apart, of which one has an id that comes again, and a broken one."""
    folder = tmp_path_factory.mktemp("parts") / "in"
    records = write_folder(folder, 60)
    for number in (30, 59):
        (folder / f"images/{number}.jpg").write_bytes(photo(1, size=(25, 18)))
    (folder / "images/7.jpg").write_bytes(b"<html>404</html>")
    records[40]["id"] = records[30]["id"]  # which goes for its image, so that this one stays
    records[50]["id"] = records[2]["id"]
    write_captions(folder, records)
    return folder


def test_parts_are_cut_by_size_and_whole_units() -> None:
    units = [((place,), size) for place, size in enumerate([4, 5, 1, 30, 2, 2])]
    found = [(part.number, part.start, part.end, part.size) for part in cut(units, 10)]
    assert found == [(0, (), (3,), 10), (1, (3,), (4,), 30), (2, (4,), None, 4)]
    assert [(part.start, part.end) for part in cut([], 10)] == [((), None)]


def test_shares_made_in_any_order_are_joined_to_the_bytes_of_one_run(source: Path, tmp_path: Path) -> None:
    run("shard", "folder", source, "--out", tmp_path / "whole", *OPTIONS)
    assert len(list((tmp_path / "whole/train").glob("*.arrow"))) > 3
    reasons = {"r7": "not an image", "r30": "image is a duplicate", "r59": "image is a duplicate", "r2": "duplicate id"}
    assert quarantine(tmp_path / "whole") == reasons
    for share in ("3/3", "1/3", "2/3", "1/3"):
        run("shard", "folder", source, "--out", tmp_path / "shared", *OPTIONS, "--part", share)
        assert not (tmp_path / "shared").exists()
    begun = {path.name for path in (tmp_path / ".shared.partial/.state").glob("*.part")}
    run("shard", "folder", source, "--out", tmp_path / "shared", *OPTIONS, "--memory-gb", 1e-6)
    assert len(begun) > 3 and tree(tmp_path / "shared") == tree(tmp_path / "whole")


def test_a_task_that_dies_while_it_takes_rows_out_is_done_again(source: Path, tmp_path: Path) -> None:
    """Whatever of the shard, its index and its table has been replaced, and if all is done but was not heard of."""
    origin = {"source": "folder", "paths": [str(source)], "options": {}, "writing": {}}
    options = Options(origin=origin, shard_bytes=6000)
    part = parts_of(open_source(origin), options)[0]
    found = []
    for deaths in ((), (1,), (2,), (3, 2), (None,)):
        (tmp_path / f"{deaths}").mkdir()
        job = PartJob(FolderStore(tmp_path / f"{deaths}/work", tmp_path / f"{deaths}/out"), options)
        made = run_part(job, part)
        assert made.rows == 4
        for death in deaths:
            attempt = multiprocessing.get_context("fork").Process(target=dying, args=(death, job, (part, made, [1, 2])))
            attempt.start()
            attempt.join()
            assert attempt.exitcode == (0 if death is None else -signal.SIGKILL)
        kept = prune_again(job, (part, made, [1, 2]))
        assert kept.splits[""].rows == 2
        found.append((kept.to_bytes(), tree(tmp_path / f"{deaths}/work")))
    assert all(one == found[0] for one in found[1:])


def dying(death: int | None, job: PartJob, item: tuple[object, ...]) -> None:
    """Be killed as the file of that number is put in the place of what was there."""
    put = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename":
            put.append(arguments[0])
            if len(put) == death:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    prune_again(job, item)  # type: ignore[arg-type]


def test_a_share_of_something_else_is_refused(source: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    shard = ("shard", "folder", source, "--out", tmp_path / "out", *OPTIONS)
    run(*shard, "--part", "1/4")
    before = tree(tmp_path)
    assert "other options" in fails(*shard, "--part", "2/4", "--longest-side", 16)
    assert tree(tmp_path) == before
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*shard, "--part", "5/4")])
    assert ended.value.code == 2


@pytest.mark.parametrize("memory", [1 << 30, 3000])
def test_shared_values_are_those_that_counting_finds(tmp_path: Path, memory: int) -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 1 << 64, (400, 2), np.uint64)
    values[17], values[203], values[390] = values[5], values[5], values[66]
    values[300, 0] = values[301, 0]  # half of it alone is equal
    places = draw.permutation(400).astype(np.uint64) << np.uint64(30)
    join = EqualJoin(tmp_path, len(values), memory)
    for start in range(0, 400, 150):
        join.add(values[start : start + 150], places[start : start + 150])
    counts = Counter(value.tobytes() for value in values)
    expected = sorted(int(place) for value, place in zip(values, places, strict=True) if counts[value.tobytes()] > 1)
    assert join.shared().tolist() == expected and len(expected) == 5
