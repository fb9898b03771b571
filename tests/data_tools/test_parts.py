"""Parts are cut by the source alone, made by any process, and joined into the bytes that one process writes."""

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
    """60 records, with a broken image, two copies of an earlier image, and two ids that are used again."""
    folder = tmp_path_factory.mktemp("parts") / "in"
    records = write_folder(folder, 60)
    for number in (30, 59):
        (folder / f"images/{number}.jpg").write_bytes(photo(1, size=(25, 18)))
    (folder / "images/7.jpg").write_bytes(b"<html>404</html>")
    records[40]["id"] = records[30]["id"]  # dropped as a copy, so this record keeps the id
    records[50]["id"] = records[2]["id"]
    write_captions(folder, records)
    return folder


def test_parts_are_cut_by_size_between_units() -> None:
    units = [((place,), size) for place, size in enumerate([4, 5, 1, 30, 2, 2])]
    found = [(part.number, part.start, part.end, part.size) for part in cut(units, 10)]
    assert found == [(0, (), (3,), 10), (1, (3,), (4,), 30), (2, (4,), None, 4)]
    assert [(part.start, part.end) for part in cut([], 10)] == [((), None)]


def test_shares_made_in_any_order_are_joined_into_the_bytes_of_one_run(source: Path, tmp_path: Path) -> None:
    run("shard", "folder", source, "--out", tmp_path / "whole", *OPTIONS)
    assert len(list((tmp_path / "whole/train").glob("*.arrow"))) > 3
    reasons = {"r7": "not an image", "r30": "image is a duplicate", "r59": "image is a duplicate", "r2": "duplicate id"}
    assert quarantine(tmp_path / "whole") == reasons
    for share in ("3/3", "1/3", "2/3", "1/3"):
        run("shard", "folder", source, "--out", tmp_path / "shared", *OPTIONS, "--part", share)
        assert not (tmp_path / "shared").exists()
    assert len(list((tmp_path / ".shared.partial/.state").glob("*.part"))) > 3
    run("shard", "folder", source, "--out", tmp_path / "shared", *OPTIONS, "--memory-gb", 1e-6)
    assert tree(tmp_path / "shared") == tree(tmp_path / "whole")


def test_pruning_killed_at_any_file_is_repeated_with_the_same_result(source: Path, tmp_path: Path) -> None:
    """Whichever of the shard, its index and its table were replaced, and also if only the result was lost."""
    origin = {"source": "folder", "paths": [str(source)], "options": {}, "writing": {}}
    options = Options(origin=origin, shard_bytes=6000)
    part = parts_of(open_source(origin), options)[0]
    found = []
    for kills in ((), (1,), (2,), (3, 2), (None,)):
        folder = tmp_path / str(kills)
        folder.mkdir()
        job = PartJob(FolderStore(folder / "work", folder / "out"), options)
        made = run_part(job, part)
        assert made.rows == 4
        item = (part, made, [1, 2])
        for kill in kills:
            attempt = multiprocessing.get_context("fork").Process(target=prune_until_killed, args=(kill, job, item))
            attempt.start()
            attempt.join()
            assert attempt.exitcode == (0 if kill is None else -signal.SIGKILL)
        kept = prune_again(job, item)
        assert kept.splits[""].rows == 2
        found.append((kept.to_bytes(), tree(folder / "work")))
    assert all(pruned == found[0] for pruned in found[1:])


def prune_until_killed(kill: int | None, job: PartJob, item: tuple[object, ...]) -> None:
    """Prune, but be killed as the file of that number, counted from 1, is about to replace the old one."""
    renamed = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename":
            renamed.append(arguments[0])
            if len(renamed) == kill:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    prune_again(job, item)  # type: ignore[arg-type]


def test_a_share_with_other_options_or_beyond_the_last_is_refused(
    source: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    shard = ("shard", "folder", source, "--out", tmp_path / "out", *OPTIONS)
    run(*shard, "--part", "1/4")
    before = tree(tmp_path)
    assert "other options" in fails(*shard, "--part", "2/4", "--longest-side", 16)
    assert tree(tmp_path) == before
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*shard, "--part", "5/4")])
    assert ended.value.code == 2


@pytest.mark.parametrize("memory", [1 << 30, 3000])
def test_values_found_more_than_once_are_those_that_counting_finds(tmp_path: Path, memory: int) -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 1 << 64, (400, 2), np.uint64)
    values[17], values[203], values[390] = values[5], values[5], values[66]
    values[300, 0] = values[301, 0]  # equal in their first halves only
    places = draw.permutation(400).astype(np.uint64) << np.uint64(30)
    join = EqualJoin(tmp_path, len(values), memory)
    for start in range(0, 400, 150):
        join.add(values[start : start + 150], places[start : start + 150])
    counts = Counter(value.tobytes() for value in values)
    expected = sorted(int(place) for value, place in zip(values, places, strict=True) if counts[value.tobytes()] > 1)
    assert len(expected) == 5
    assert join.shared().tolist() == expected
