"""What the `--help` of a subcommand shows: what it does, and examples of it."""

from __future__ import annotations

import argparse
import textwrap

WIDTH = 80


def describe_subcommands(commands: argparse._SubParsersAction[argparse.ArgumentParser], examples: str) -> None:
    """Give each subcommand a description, if it has none, and those of the command's examples that call it."""
    for listed in commands._choices_actions:
        command = commands.choices[listed.dest]
        summary = listed.help or ""
        command.description = textwrap.fill(command.description or f"{summary[:1].upper()}{summary[1:]}.", WIDTH)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        own = [line for line in examples.splitlines() if line.split()[1:2] == [listed.dest]]
        if own:
            command.epilog = "\n".join(["examples:", *own, *(["", command.epilog] if command.epilog else [])])
