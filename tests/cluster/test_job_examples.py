"""The job files that the documentation shows."""

import re
import tomllib

import pytest

from cluster.__main__ import BACKENDS, PREFLIGHTS
from cluster.job import load_job
from cluster.pipeline.file import is_pipeline
from cluster.shard import is_shard_job
from tests.cluster.conftest import rendered
from tests.conftest import ROOT

EXAMPLES = [
    path for path in sorted((ROOT / "cluster").rglob("*.toml")) if not is_shard_job(path) and not is_pipeline(path)
]


def commands(path):
    """The commands that an example's opening comment shows, as lists of words."""
    opening = "\n".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
    lines = re.findall(r"mvlm-cluster (.*--on.*)", opening.replace("\\\n", " "))
    return [words for words in map(str.split, lines) if ROOT / words[1] == path]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_renders_with_the_commands_in_its_comment(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    load_job(path)
    for verb, _, _, backend, *overrides in commands(path):
        assert backend in (PREFLIGHTS if verb == "preflight" else BACKENDS)
        assert verb in ("submit", "render", "preflight")
        if verb == "submit":
            out = rendered(path, backend, *overrides)
            assert all(word in out for word in overrides)


def test_the_documentation_shows_the_largest_example():
    text = (ROOT / "docs/cluster.md").read_text()
    shown = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    assert shown == tomllib.loads((ROOT / "cluster/examples/many_nodes.toml").read_text())
