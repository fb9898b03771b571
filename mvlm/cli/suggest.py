"""What a user may have meant by a word on the command line that is not understood."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

HABITS = {
    "resume": "a run resumes by itself; checkpoint.resume=CHECKPOINT takes another checkpoint",
    "config": "give the TOML file by itself, as the first argument",
    "epochs": "write train.epochs=N",
    "lr": "write optim.lr=RATE",
    "batch-size": "write train.global_batch=PAIRS",
    "output-dir": "write run.dir=FOLDER",
}
"""Options that people know from other programs."""


OF_DATA = (
    *("shard", "count", "tokenizer", "retry", "verify", "row-index", "takedown"),
    *("stats", "preview", "merge", "split", "synth", "miniature"),
)
"""The commands of mvlm-data alone."""


def suggest_command(word: str, commands: Iterable[str]) -> str:
    """The message for a word that is not a command."""
    if word in OF_DATA:
        return f"no command {word!r}: did you mean mvlm-data {word}?"
    near = difflib.get_close_matches(word, list(commands), n=1)
    return f"no command {word!r}: " + (f"did you mean {near[0]}?" if near else "see --help.")


def suggest_option(unknown: Sequence[str], help_text: str, takes_settings: bool) -> str:
    """The message for options that a command does not have; names the first.

    Args:
        unknown: words that the command does not know; the values of options may be among them.
        help_text: the command's.
        takes_settings: whether it takes table.key=value.
    """
    place = next(place for place, word in enumerate(unknown) if word.startswith("--"))
    option, following = unknown[place], "".join(unknown[place + 1 : place + 2])
    name, equals, value = option.lstrip("-").partition("=")
    if not equals:
        value = following if following and not following.startswith("-") else "VALUE"
    said = f"no option {option.partition('=')[0]}: "
    near = difflib.get_close_matches(f"--{name}", re.findall(r"--[\w-]+", help_text), n=1, cutoff=0.75)
    if takes_settings and "." in name:
        return f"{said}settings have no dashes, write {name}={value}."
    if near:
        return f"{said}did you mean {near[0]}?"
    if takes_settings and name.replace("_", "-") in HABITS:
        return f"{said}{HABITS[name.replace('_', '-')]}."
    return f"{said}see --help."
