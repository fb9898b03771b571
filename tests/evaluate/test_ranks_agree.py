"""Commands whose ranks share the work give the same bytes with any number of ranks."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main
from mvlm.data.shards.schema import read_manifest
from tests.ranks import mvlm, run_ranks

SHARDS = 4
"""Neither two ranks nor three divide them equally into whole batches."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "s"
    assert data_tools(["synth", "--task", "caption", "--count", "22", "--shard-mb", "0.018", "--out", str(out)]) == 0
    assert len(read_manifest(out).shards) == SHARDS
    return out


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shared(ranks: int, *words: object) -> str:
    done = run_ranks(mvlm, *map(str, words), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.campaign)])
def test_scores_do_not_depend_on_the_number_of_ranks(trained: Path, corpus: Path, tmp_path: Path, ranks: int) -> None:
    alone, together = (shutil.copytree(corpus, tmp_path / name) for name in ("alone", "together"))
    words = ["--checkpoint", str(trained), "--batch", "4", "--clusters", "3"]
    assert main(["score", str(alone), *words]) == 0
    said = shared(ranks, "score", together, *words)
    assert said.count("\n") == 2 and "still to be scored" not in said
    assert digests(together) == digests(alone) and len(digests(alone)) > len(digests(corpus))


@pytest.mark.parametrize(
    ("task", "ranks"),
    [
        ("retrieval", 2),
        pytest.param("retrieval", 3, marks=pytest.mark.campaign),
        pytest.param("reconstruction", 2, marks=pytest.mark.campaign),
        pytest.param("reconstruction", 3, marks=pytest.mark.campaign),
    ],
)
def test_evaluation_does_not_depend_on_the_number_of_ranks(
    trained: Path, corpus: Path, tmp_path: Path, task: str, ranks: int
) -> None:
    words = ["evaluate", task, "--checkpoint", str(trained), "--data", str(corpus), "--batch", "5", "--json"]
    assert main([*words, str(tmp_path / "alone.json")]) == 0
    shared(ranks, *words, tmp_path / "together.json")
    found = (tmp_path / "alone.json").read_text()
    assert found.count("\n") > 10 and (tmp_path / "together.json").read_text() == found
