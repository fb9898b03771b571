"""The documentation builds without warnings, loads nothing from elsewhere, and names only what exists."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cluster.__main__ import parser as cluster_parser
from data_tools.__main__ import parser as data_parser
from mvlm.__main__ import COMMANDS, command_line
from mvlm.config.load import load_config
from tests.conftest import ROOT
from tests.pages.shown import PAGES, shell_blocks
from tests.scripts import load_script

pytest.importorskip("mkdocs")

LOADED = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*\shref=["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assert not LOADED.search(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_site_follows_the_systems_dark_mode(site: Path) -> None:
    offered = re.findall(r'data-md-color-media="([^"]*)"', (site / "index.html").read_text(encoding="utf-8"))
    asked = [f"(prefers-color-scheme{mode})" for mode in ("", ": light", ": dark")]
    assert list(dict.fromkeys(offered)) == asked, "a browser takes the first that matches"


def test_linked_files_outside_the_pages_are_part_of_the_site(site: Path) -> None:
    cluster = (site / "cluster.html").read_text(encoding="utf-8")
    assert 'href="files/cluster/local.toml.html"' in cluster
    assert "processes_per_node" in (site / "files/cluster/local.toml.html").read_text(encoding="utf-8")
    back = (site / "files/ds_configs/index.html").read_text(encoding="utf-8")
    assert "DeepSpeed" in back


def test_the_configuration_reference_matches_the_code() -> None:
    reference = load_script(ROOT / "docs/hooks/reference.py")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "python docs/hooks/reference.py writes it"
    assert reference.SCHEMA.read_text(encoding="utf-8") == reference.schema(), (
        "python docs/hooks/reference.py writes it"
    )
    for line in reference.page().splitlines():
        if re.match(r"\| `\w+` \|", line):
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line


@cache
def parser(name: str) -> argparse.ArgumentParser:
    return {"mvlm": lambda: command_line(COMMANDS), "data_tools": data_parser, "cluster": cluster_parser}[name]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_that_a_page_names_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Including those that no test runs: each is parsed by its own parser."""
    for words in (words for block in shell_blocks(page) for command in block for words in command.calls()):
        try:
            _, rest = parser(words[0]).parse_known_args(words[1:])
        except SystemExit:
            pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")
        assert [word for word in rest if word.startswith("-") or "=" not in word] == [], words
        if words[:2] in (["mvlm", "train"], ["mvlm", "check"], ["mvlm", "plan"]) and words[2] != "data":
            recipe = ROOT / words[2]
            load_config(recipe if recipe.exists() else ROOT / "mvlm/configs/tiny.toml", rest)


@pytest.mark.parametrize("module", sorted((ROOT / "mvlm/cli").glob("*.py")), ids=lambda path: path.stem)
def test_examples_in_help_have_all_required_arguments(module: Path) -> None:
    examples = (
        (ast.get_docstring(ast.parse(module.read_text())) or "").replace("\\\n", "").partition("\nexamples:\n")[2]
    )
    for line in examples.partition("\n\n")[0].splitlines():
        words = list(itertools.takewhile(lambda word: word != ">", shlex.split(line, comments=True)))
        if "mvlm" in words:  # and not mvlm-cluster
            given = words[words.index("mvlm") + 1 :]
            _, settings = command_line(given).parse_known_args(given)
            assert all("=" in setting for setting in settings), line


def test_the_page_of_measurements_lists_exactly_the_stored_results() -> None:
    page = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    folders = re.findall(r"`(benchmarks/\w+/results)`", page)
    assert {ROOT / folder for folder in folders} == set(ROOT.glob("benchmarks/*/results"))
    for folder in folders:
        assert any((ROOT / folder).iterdir()), folder
    for script in re.findall(r"`(?:python )?((?:benchmarks/\w+/)?\w+\.py)\b", page):
        assert list(ROOT.glob(script if "/" in script else f"benchmarks/data/{script}")), script


@pytest.mark.parametrize(
    ("script", "page"),
    [("benchmarks.kernels.cpu", "docs/kernels.md"), ("benchmarks.plan.compare", "benchmarks/plan/README.md")],
)
def test_a_table_shows_its_stored_result(script: str, page: str) -> None:
    module = importlib.import_module(script)
    text = (ROOT / page).read_text(encoding="utf-8")
    results = list(module.RESULTS.glob("*.json"))
    assert results
    for file in results:
        begin, end = module.marks(file.stem)
        assert text.split(begin)[1].split(end)[0] == module.table(json.loads(file.read_text(encoding="utf-8")))
