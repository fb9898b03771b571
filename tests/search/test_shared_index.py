"""An index made by several ranks equals that of one rank to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.data.shards.mixture import Mixture
from mvlm.search import folder
from mvlm.search.build import IndexWork, build_index

CPU = torch.device("cpu")
BATCH, PART = 16, 50  # so that files, shares and batches all end at different rows of the 300


def contents(index: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in index.iterdir()}


def shared(loaded: Any, folders: list[str], out: Path, world: int, captions: bool) -> Path:
    """The work of each rank, one after another; each opens the corpus itself, as separate processes would."""
    out.mkdir()
    works = [IndexWork(out, Mixture(folders), BATCH, 16, rank, world, captions) for rank in range(world)]
    for work in works:
        work.embed(loaded, CPU)
    files = [file for work in reversed(works) for file in work.build()]
    works[0].complete(loaded, sorted(files, key=lambda file: file.file))
    return out


@pytest.mark.parametrize("captions", [False, True])
def test_any_number_of_ranks_makes_the_same_bytes(
    loaded: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captions: bool
) -> None:
    monkeypatch.setattr(folder, "PART", PART)
    folders = [str(scenes / part) for part in ("eval", "train")]
    alone = contents(shared(loaded, folders, tmp_path / "1", 1, captions))
    assert len(alone) == 8  # six files of vectors, the table and the description
    for world in (2, 3, 25):  # of 25 ranks some have nothing to embed, and most have no file to build
        assert contents(shared(loaded, folders, tmp_path / str(world), world, captions)) == alone


def test_a_failed_write_leaves_nothing(
    loaded: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.Index, "save", fails)
    with pytest.raises(folder.UserError, match=r"out cannot be written .*No space left"):
        build_index(loaded, [str(scenes / "eval")], tmp_path / "out", CPU)
    assert list(tmp_path.iterdir()) == []
