"""The commands and the Python of every page run on small corpora, unless the page says that they need something else.

Each page is run from top to bottom in a folder of its own, its Python in one namespace. Pages that train or plan are
run as a campaign.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.__main__ import main as cluster
from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from mvlm.api import results
from tests.conftest import ROOT, MadeOnce
from tests.pages.shown import NEEDS, PAGES, Command, Script, blocks_to_run, languages, shell_commands
from tests.pages.world import make_world, reduced
from tests.serve.process import start
from tests.training.conftest import one_rank  # noqa: F401

ELSEWHERE = {
    "docs/extending.md": "tests/test_extending.py::test_the_page_shows_each_example_as_it_is",
    "docs/downstream.md": "tests/training/test_downstream_page.py::test_every_command_runs",
    "docs/search.md": "tests/search/test_search_page.py::test_every_command_runs",
    "docs/serve.md": "tests/serve/test_serve_page.py::test_every_command_runs",
    "mvlm reproduce nlvr2 --miniature": "tests/training/test_reproduce.py::"
    "test_a_table_is_made_from_the_best_epoch_and_resumed",
    "python -m cluster submit cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline_clusters.py::"
    "test_a_shipped_pipeline_on_slurm",
    "python -m cluster status cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline.py::"
    "test_preemptions_and_crashes_are_tried_again_and_mistakes_are_not",
    "python -m cluster logs   cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline.py::"
    "test_preemptions_and_crashes_are_tried_again_and_mistakes_are_not",
    "python -m cluster rerun  cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline.py::"
    "test_unchanged_steps_do_not_run_again",
    "python -m cluster cancel cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline.py::"
    "test_a_step_outlives_its_driver_and_is_cancelled_and_resumed",
    "python -m cluster check  cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline_examples.py::"
    "test_a_shipped_pipeline_passes_check_and_plan_by_its_time_limits",
    "python -m cluster plan   cluster/pipelines/emoji.toml": "tests/cluster/test_pipeline_examples.py::"
    "test_a_shipped_pipeline_is_planned_from_what_its_runs_compute",
}
"""Pages or beginnings of commands, and the tests that run them."""

QUICK = ["examples/README.md", "data_tools/README.md", "docs/data.md", "docs/observe.md", "docs/stages.md"]
"""Pages without training or plans, each at most a second of CPU time."""

SHORTER = {
    "--count 4000": "--count 160",
    "keep_every=1000": "keep_every=2",
    "--at 1000,2000,4000 --steps 200": "--at 2,4 --steps 2",
    '"deepspeed --module mvlm"': '"python -m mvlm"',
    "runs/mine/checkpoints/step_0000{2,3,4}000": "runs/trunk/checkpoints/step_0000000{2,4}",
    "--clusters 1000": "--clusters 10",
    "/data": "data",
}
"""Text of the pages, and what replaces it on a small machine."""

QUESTIONS = "python -m data_tools synth --task vqa --count 60 --split train=0.6,eval=0.2,test=0.2 --out shards/vqa"
BEFORE = {
    "docs/schedules.md": ["mvlm train run.toml --deepspeed_config ds_configs/cpu.json eval.select=eval/mean_recall"],
    "docs/paper_data.md": [
        "python -m data_tools synth --task vqa --count 60 --seed 3 --out shards/vqa",
        "mvlm train mvlm/configs/vqa.toml --deepspeed_config ds_configs/cpu.json data.train=shards/vqa "
        "checkpoint.init=runs/base",
    ],
    "docs/fine_tune.md": [QUESTIONS],
    "docs/python.md": [QUESTIONS],
}
"""Commands that a page expects to have been run."""

MAKES_RUN = re.compile(r'\bmvlm train (?!.*run\.dir=)|\b(run\.dir=|out=")runs/(mine|base)\b')
"""Lines that make runs which the folder otherwise provides."""


def test_every_block_of_code_names_its_language_and_needs_are_known() -> None:
    for page in PAGES:
        assert set(languages(page)) <= {"sh", "text", "toml", "python", "json", "bibtex"}, page
    scripts = [block for page in PAGES for block in blocks_to_run(page) if isinstance(block, Script)]
    said = {each.needs for each in (*shell_commands(), *scripts) if each.needs}
    assert {need for needs in said for need in re.split(", | and | or ", needs)} == NEEDS


def test_the_tests_that_run_commands_elsewhere_exist() -> None:
    lines = [command.line for command in shell_commands()]
    for what, test in ELSEWHERE.items():
        path, name = test.split("::")
        assert re.search(rf"^(@.*\n)*def {name}\(", (ROOT / path).read_text(), re.MULTILINE), test
        assert (ROOT / what).exists() or any(line.startswith(what) for line in lines), what


def test_pages_that_are_run_quickly_or_shortened_exist() -> None:
    """Otherwise a renamed page would be left to the campaign."""
    walked_pages = {page.relative_to(ROOT).as_posix() for page in PAGES if walked(page)}
    assert {*QUICK, *BEFORE} <= walked_pages
    blocks = [block for page in PAGES for block in walked(page)]
    text = "\n".join(
        block.text if isinstance(block, Script) else "\n".join(command.line for command in block) for block in blocks
    )
    assert [long for long in SHORTER if long not in text] == []


def test_the_first_page_does_not_use_the_output_folders_of_the_next() -> None:
    """`mvlm-data` neither makes shards in a folder that holds anything else nor overwrites files."""
    made: dict[str, list[Path]] = {"docs/start.md": [], "docs/corpus.md": []}
    for command in shell_commands():
        for program, *words in command.calls() if command.page in made else ():
            if program == "data_tools" and "--out" in words:
                made[command.page].append(Path(words[words.index("--out") + 1]))
    first, following = made.values()
    assert first and not [(place, own) for place in following for own in first if place in (own, *own.parents)]


def walked(page: Path) -> list[list[Command] | Script]:
    """The blocks of a page without what another test runs or this machine lacks."""
    if page.relative_to(ROOT).as_posix() in ELSEWHERE:
        return []
    return list(filter(None, map(free, blocks_to_run(page))))


def free(block: list[Command] | Script) -> list[Command] | Script | None:
    if isinstance(block, Script):
        return None if block.needs else block
    return [each for each in block if not each.needs and not is_elsewhere(each)]


def is_elsewhere(command: Command) -> bool:
    return any(command.line.startswith(what) for what in ELSEWHERE)


@pytest.fixture
def world(scenes: Path, trained: Path, made_once: MadeOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = made_once("world", lambda out: make_world(out, scenes, trained))
    folder = tmp_path / "world"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name, marks=[] if name in QUICK else pytest.mark.campaign)
        for page in PAGES
        if walked(page) and (name := page.relative_to(ROOT).as_posix())
    ],
)
def test_the_commands_of_a_page_run(
    page: Path,
    world: Path,
    one_rank: None,  # noqa: F811
    own_signals: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results, "launch_training", train_here)
    known: dict[str, Any] = {}
    name = page.relative_to(ROOT).as_posix()
    begin(name, world)
    for line in BEFORE.get(name, []):
        assert run(Command(name, line, "")) == 0, capsys.readouterr().err
    for block in walked(page):
        if isinstance(block, Script):
            exec(compile(block.text, name, "exec"), known)
        elif all(command.is_ours for command in block):
            for command in block:
                assert run(command) == 0, f"{command.line}\n{capsys.readouterr().err}"
        else:
            script = "\n".join(command.line for command in block)
            done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
            assert done.returncode == 0, f"{script}\n{done.stderr}"


def begin(page: str, world: Path) -> None:
    """Remove what the page makes itself."""
    blocks = walked(ROOT / page)
    lines = [each.text for each in blocks if isinstance(each, Script)] + BEFORE.get(page, [])
    lines += [command.line for block in blocks if not isinstance(block, Script) for command in block]
    if any(MAKES_RUN.search(line) for line in lines):
        shutil.rmtree(world / "runs/mine")
    if not any("checkpoint.init=runs/base" in line for line in lines):
        shutil.rmtree(world / "runs/base")


def run(command: Command) -> int:
    """Run a command in this process; the first exit code that is not 0."""
    line = command.line
    for long, short in SHORTER.items():
        line = line.replace(long, short)
    return next(filter(None, map(call, Command(command.page, expanded(line), "").calls())), 0)


def expanded(line: str) -> str:
    """A line with the shell's braces and stars expanded."""
    if not re.search(r"[*{]", line):
        return line
    parts = [
        subprocess.run(["bash", "-c", f"printf '%s\\0' {part}"], capture_output=True, text=True, check=True).stdout
        for part in line.split(" && ")
    ]
    return " && ".join(shlex.join(part.split("\0")[:-1]) for part in parts)


def call(words: list[str]) -> int:
    match words:
        case ["mvlm", "train" | "check" as verb, *rest]:
            return mvlm([verb, *reduced(rest)])
        case ["mvlm", "serve", *rest]:
            return serve([os.path.abspath(word) if os.path.exists(word) else word for word in rest])
        case ["mvlm", *rest]:
            return mvlm(rest)
        case ["data_tools", *rest]:
            if "--out" in rest:
                shutil.rmtree(rest[rest.index("--out") + 1], ignore_errors=True)
            return data_tools([*rest, *(["--workers", "1"] if rest[0] == "shard" else [])])
        case ["cluster", "submit" | "render" as verb, job, *rest] if job != "cluster/shards.toml":
            return cluster([verb, *reduced([job, *rest])])
        case ["cluster", *rest]:
            return cluster(rest)
    raise AssertionError(f"this test cannot run {words}")


def train_here(recipe: str, deepspeed: str, overrides: Sequence[str], ranks: int) -> None:
    """Train in this process instead of by a launcher."""
    first = tomllib.loads(Path(recipe).read_text()).get("checkpoint", {}).get("init")
    words = [*overrides, *([f"checkpoint.init={first}"] if first else [])]
    assert mvlm(["train", *reduced([recipe, "--deepspeed_config", deepspeed, *words])]) == 0


def serve(words: list[str]) -> int:
    """Serve until the server listens."""
    process, address = start(*words)
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=100)
