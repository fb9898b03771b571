"""Explain the keys of a run TOML: what each means, its type and range, and its default.

examples:
  mvlm config                  # all tables and their keys, one per line
  mvlm config optim            # one table
  mvlm config train.freeze     # one key
  mvlm config --schema > mvlm.schema.json

Editors with a TOML language server (taplo, Even Better TOML) complete and check keys with the schema if the first line
of a run TOML is `#:schema mvlm.schema.json`, as in every recipe.
"""

from __future__ import annotations

import argparse
import difflib
import json

from rich.console import Console
from rich.markup import escape

from mvlm.config.describe import DescribedKey, json_schema, run_keys
from mvlm.config.load import DEEPSPEED_NAMES, OTHER_NAMES
from mvlm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="a table, or a key of one: table.key")
    parser.add_argument("--schema", action="store_true", help="print a JSON schema for editors")


def run(args: argparse.Namespace) -> int:
    """Print; returns the exit code. Raises `UserError` if there is no such key."""
    if args.schema:
        print(json.dumps(json_schema(), indent=1))
        return 0
    keys = find_keys(args.key)
    console = Console(soft_wrap=True, highlight=False)
    for key in keys:
        default = "required" if key.default is None else f"default {key.default}"
        console.print(f"[bold]{escape(key.name)}[/bold]  {escape(default)}  ({escape(key.domain.replace('`', ''))})")
        if args.key:
            console.print(f"  {escape(key.meaning)}")
    return 0


def find_keys(asked: str) -> list[DescribedKey]:
    """All keys, those of a table, or one.

    Raises:
        UserError: there is no such table or key; names those that are similar.
    """
    keys = run_keys()
    found = [key for key in keys if not asked or key.name == asked or key.name.startswith(f"{asked}.")]
    if not found:
        tables = {key.name.partition(".")[0] for key in keys}
        names = [key.name for key in keys]
        close = [name for name in names if name.endswith(f".{asked}") or name == OTHER_NAMES.get(asked)]
        close += [DEEPSPEED_NAMES[asked]] if asked in DEEPSPEED_NAMES else []
        close = close or difflib.get_close_matches(asked, [*names, *tables], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"tables are {', '.join(sorted(tables))}."
        raise UserError(f"No key {asked}: {hint}")
    return found
