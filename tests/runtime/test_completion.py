"""The three commands are completed by a real bash from the scripts that they print."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.__main__ import main as cluster
from data_tools.__main__ import main as data_tools
from mvlm.__main__ import COMMANDS
from mvlm.__main__ import main as mvlm

MAINS = {"mvlm": mvlm, "mvlm-data": data_tools, "mvlm-cluster": cluster}
Complete = Callable[..., set[str]]


@pytest.fixture(scope="module")
def printed() -> Callable[[str, str], str]:
    """What a command prints for a shell, cached: it takes seconds to describe all commands of mvlm."""
    made: dict[tuple[str, str], str] = {}

    def script(command: str, shell: str) -> str:
        if (command, shell) not in made:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert MAINS[command](["completion", shell]) == 0
            made[command, shell] = out.getvalue()
        return made[command, shell]

    return script


@pytest.fixture
def completes(printed: Callable[[str, str], str], tmp_path: Path) -> Complete:
    """completes(word, ..., last) -> bash's completions of the last word, in a folder with run.toml and shards/."""
    (tmp_path / "run.toml").touch()
    (tmp_path / "shards").mkdir()

    def ask(*words: str) -> set[str]:
        (tmp_path / "script").write_text(printed(words[0], "bash"))
        typed = " ".join(f"'{word}'" for word in words)
        lines = f"""
            source ./script
            COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}
            COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
            function=$(complete -p '{words[0]}' | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
            $function
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        ended = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert ended.stderr == ""
        return {word.strip() for word in ended.stdout.splitlines()} - {""}

    return ask


def test_commands_are_completed(completes: Complete) -> None:
    assert completes("mvlm", "") >= set(COMMANDS)
    assert completes("mvlm", "pre") == {"predict", "preflight"}
    assert completes("mvlm-data", "s") >= {"shard", "stats", "split", "synth"}
    assert completes("mvlm-cluster", "su") == {"submit"}


def test_options_choices_and_paths_are_completed(completes: Complete) -> None:
    assert completes("mvlm", "evaluate", "retr") == {"retrieval"}
    assert completes("mvlm", "evaluate", "retrieval", "--chec") == {"--checkpoint"}
    assert completes("mvlm", "train", "ru") == {"run.toml"}
    assert completes("mvlm-data", "shard", "webd") == {"webdataset"}
    assert completes("mvlm-data", "verify", "sha") == {"shards"}
    assert completes("mvlm-cluster", "submit", "run.toml", "--on", "sl") == {"slurm"}


@pytest.mark.parametrize("command", MAINS)
def test_zsh_takes_the_script(command: str, printed: Callable[[str, str], str], tmp_path: Path) -> None:
    script = printed(command, "zsh")
    assert script.startswith(f"#compdef {command}")
    if not shutil.which("zsh"):
        pytest.skip("there is no zsh")
    (tmp_path / "script").write_text(script)
    assert subprocess.run(["zsh", "-n", "script"], cwd=tmp_path).returncode == 0
