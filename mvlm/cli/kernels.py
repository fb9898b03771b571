"""Show which implementation each operation uses on this machine, and why it does not use the others.

examples:
  mvlm kernels
  mvlm kernels run.toml kernels.attention=sdpa
  mvlm kernels --json kernels.json

The names are those that [kernels] in the run TOML accepts. docs/kernels.md says when each is the better choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvlm kernels [RUN.toml] [--json FILE] [key=value ...]"
    parser.add_argument("config", nargs="?", metavar="RUN.toml", help="use its [kernels]; without it, all are auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write it to this file")
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Print the table and write the JSON; returns the exit code.

    Raises:
        UserError: an implementation asked for cannot run here, or the JSON cannot be written.
    """
    from mvlm.cli.output import write_json
    from mvlm.config.load import load_config
    from mvlm.config.schema import Config
    from mvlm.runtime import dist
    from mvlm.training.kernels import settle_run, survey

    words = [args.config, *args.overrides] if args.config else args.overrides
    config = load_config(words[0], words[1:]) if words else Config()
    settle_run(config.kernels)
    found = survey(dist.device())
    print(as_text(found), end="")
    write_json(args.json, found)
    return 0


def as_text(found: dict[str, Any]) -> str:
    """A paragraph per operation: what computes it in each precision, and why the others do not."""
    lines = [f"on {found['device']}"]
    for name, operation in found["operations"].items():
        lines += ["", f"{name}: {_by_value(operation['taken'])}"]
        for who, facts in operation["implementations"].items():
            lines.append(f"  {who:10} {facts['version']}".rstrip())
            if facts["not_taken"]:
                lines.append(f"    not taken: {_by_value(facts['not_taken'])}")
    return "\n".join(lines) + "\n"


def _by_value(of_precisions: dict[str, str]) -> str:
    """{"fp32": "a", "bf16": "a"} -> "a"; where precisions differ, each is named."""
    if len(set(of_precisions.values())) == 1 and len(of_precisions) > 1:
        return next(iter(of_precisions.values()))
    return "; ".join(f"in {precision} {value}" for precision, value in of_precisions.items())
