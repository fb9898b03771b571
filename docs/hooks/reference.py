"""`python docs/hooks/reference.py` writes docs/configuration.md from the dataclasses that are the configuration.

A key's meaning is the comment beside it in the source, and its range what the code refuses; a test holds the page to
both.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cluster import job
from mvlm.config import schema as config
from mvlm.config import validate as ranges
from mvlm.config.toml import as_toml

PAGE = Path(__file__).resolve().parents[1] / "configuration.md"
HEAD = """<!-- Written by `python docs/hooks/reference.py` from mvlm/config/schema.py and cluster/job.py. -->
# Configuration

Look up every key of a run TOML and a job file. All have defaults except those marked *required*. An unknown key, or a
value of the wrong type or out of range, is an error that names the key; `mvlm check RUN.toml` finds all at once.

Any key can be overridden on the command line, in TOML syntax or as a bare string: `train.steps=100`,
`'data.train=["a", "b"]'`.
ZeRO, precision, offload and communication belong to the DeepSpeed JSON: [which file when](../ds_configs/README.md).

Letters after a meaning say where a default comes from: **P** stated in the paper (arXiv 2208.02131); **R** that of the
reference, [ALBEF's code](https://github.com/salesforce/ALBEF) (arXiv 2107.07651), or remembered of the paper; **D**
decided by us. Defaults without one do not bear on what is computed.

## The run

Tables of `RUN.toml`. The resolved values are saved in every checkpoint as `config.toml`.
"""
JOB_HEAD = """
## The job

Tables of `job.toml`, which `python -m cluster` reads: [from one GPU to sixty-four nodes](cluster.md). Override one
on the command line with the prefix `job.`: `job.nodes=4`.
"""
WORDS = {str: "string", int: "whole number", float: "number", bool: "true or false", Any: "value"}


def page() -> str:
    """The whole page."""
    hints = typing.get_type_hints(config.Config)
    comments, limits = meanings(config), run_ranges()
    parts = [HEAD]
    for table in dataclasses.fields(config.Config):
        parts += _section(table.name, hints[table.name], comments, limits)
    comments, limits = meanings(job), job_ranges()
    parts += [JOB_HEAD, *_section("job", job.Job, comments, limits), *_section("sweep", job.Sweep, comments, limits)]
    return "\n".join(parts)


def _section(name: str, cls: type, comments: dict[str, str], limits: dict[str, str]) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    yield f"### `[{name}]`\n\n| key | default | type and range | meaning |\n|---|---|---|---|"
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]) or field.name == "sweep":
            continue
        key = f"{name}.{field.name}"
        cells = (
            f"`{field.name}`",
            _default(field),
            _domain(hints[field.name], limits.get(key, "")),
            comments[f"{cls.__name__}.{field.name}"],
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def meanings(module: types.ModuleType) -> dict[str, str]:
    """The comment of each `Class.field`: that behind it, or else the lines above it."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            (behind if token.line[: token.start[1]].strip() else alone)[token.start[0]] = text
    found = {}
    for cls in ast.parse(source).body:
        for node in cls.body if isinstance(cls, ast.ClassDef) else ():
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            text = behind.get(node.lineno, "")
            line = node.lineno - 1
            while not behind.get(node.lineno) and line in alone:
                text, line = f"{alone[line]} {text}".strip(), line - 1
            found[f"{cls.name}.{node.target.id}"] = text
    return found


def run_ranges() -> dict[str, str]:
    """By key, what `mvlm.config.validate` asks of its value, in its own words."""
    found = {f"{table}.{key}": "1 or more" for table, keys in ranges.AT_LEAST_ONE.items() for key in keys}
    found |= {f"{table}.{key}": "0 or more" for table, keys in ranges.NOT_NEGATIVE.items() for key in keys}
    tree = ast.parse(Path(str(ranges.__file__)).read_text(encoding="utf-8"))
    loops = {id(call): node for node in ast.walk(tree) if isinstance(node, ast.For) for call in ast.walk(node)}
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "require"):
            continue
        _, name, wanted = call.args
        loop = loops.get(id(call))
        if not isinstance(wanted, ast.Constant):
            continue  # words made as it runs
        if isinstance(name, ast.Constant):
            found[str(name.value)] = str(wanted.value)
        elif loop and isinstance(loop.iter, ast.Tuple):
            found |= {ast.literal_eval(key): str(wanted.value) for key in loop.iter.elts}
    return found


def job_ranges() -> dict[str, str]:
    """The same of the job file; a name stands for its table and the sweep's alike."""
    return {f"{table}.{name}": f"{least} or more" for name, least in job.LEAST.items() for table in ("job", "sweep")}


def _domain(hint: Any, limit: str) -> str:
    """A type with its range, which for choices and lists says the type too."""
    kind = _kind(hint)
    if kind.startswith("list") and limit:
        return f"list: {limit}"
    if kind.startswith("one of"):
        return kind
    return limit if limit.startswith("one of") else ", ".join(filter(None, (kind, limit)))


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return (
            "one of " + ", ".join(f"`{as_toml(word)}`" for word in args) if len(args) > 1 else f"`{as_toml(args[0])}`"
        )
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_kind, args))
    if origin is tuple and args[-1] is not Ellipsis:
        return f"list of {len(args)} {_kind(args[0])}s"
    if origin in (tuple, list):
        return f"list of {_kind(args[0])}s" if args[0] is not Any else "list"
    if origin is dict:
        return f"table of {_kind(args[1])}s"
    return WORDS[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{_number(as_toml(field.default))}`"
    return "*required*" if field.default_factory is dataclasses.MISSING else f"`{as_toml(field.default_factory())}`"


def _number(text: str) -> str:
    return re.sub(r"e-0(\d)$", r"e-\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
