"""The meanings, types, ranges and defaults of a configuration's keys, from its source.

A key's meaning is the comment beside it in `mvlm/config/schema.py`, and its range is what `mvlm/config/validate.py`
requires.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvlm.config import schema
from mvlm.config.toml import as_toml
from mvlm.config.validate import requirements

WORDS = {str: "string", int: "whole number", float: "number", bool: "true or false", Any: "value"}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class DescribedKey:
    """A key of a configuration, in words.

    Attributes:
        name: `table.key`.
        default: in TOML; None = it must be given.
        domain: type and range.
    """

    name: str
    default: str | None
    domain: str
    meaning: str


def run_keys() -> list[DescribedKey]:
    """All keys of a run TOML, table by table."""
    hints, comments = typing.get_type_hints(schema.Config), meanings(schema)
    limits = {name: wanted for _, name, wanted in requirements(schema.Config())}
    tables = [(table.name, hints[table.name]) for table in dataclasses.fields(schema.Config)]
    return [key for name, cls in tables for key in described(name, cls, comments, limits)]


def described(table: str, cls: type, comments: Mapping[str, str], limits: Mapping[str, str]) -> list[DescribedKey]:
    """The keys of one table.

    Args:
        comments: of each `Class.field`, as `meanings` gives them.
        limits: by key, the range in words.
    """
    hints, found = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]) or field.name == "sweep":
            continue
        key = f"{table}.{field.name}"
        domain, meaning = _domain(hints[field.name], limits.get(key, "")), comments[f"{cls.__name__}.{field.name}"]
        found.append(DescribedKey(key, _default(field), domain, meaning))
    return found


def json_schema() -> dict[str, Any]:
    """A JSON schema (draft 7) of run TOMLs, with which editors complete and explain keys."""
    hints, meant = typing.get_type_hints(schema.Config), {key.name: key for key in run_keys()}
    tables = {}
    for table in dataclasses.fields(schema.Config):
        types_ = typing.get_type_hints(hints[table.name])
        keys = {
            name: {**_json_type(hint), "description": meant[f"{table.name}.{name}"].meaning}
            for name, hint in types_.items()
            if f"{table.name}.{name}" in meant
        }
        tables[table.name] = {"type": "object", "properties": keys, "additionalProperties": False}
    stages = {"type": "array", "items": {"type": "object"}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A run of mvlm",
        "type": "object",
        "properties": tables | {"stage": stages},
        "additionalProperties": False,
    }


def _json_type(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_json_type(arg) for arg in args]}
    if origin in (tuple, list):
        length = {} if origin is list or args[-1] is Ellipsis else {"minItems": len(args), "maxItems": len(args)}
        array = {"type": "array", **({"items": _json_type(args[0])} if args[0] is not Any else {}), **length}
        return {"anyOf": [{"type": "string"}, array]} if args == (str, Ellipsis) else array  # one may stand alone
    if origin is dict:
        return {"type": "object"}
    return {"type": JSON_TYPES[hint]} if hint in JSON_TYPES else {}


def meanings(module: types.ModuleType) -> dict[str, str]:
    """The comment of each `Class.field`: the one after it or, without that, the lines above it."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    behind: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            (behind if token.line[: token.start[1]].strip() else alone)[token.start[0]] = text
    found = {}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for cls in classes:
        for node in cls.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            text = behind.get(node.lineno, "")
            line = node.lineno - 1
            while not behind.get(node.lineno) and line in alone:
                text, line = f"{alone[line]} {text}".strip(), line - 1
            found[f"{cls.name}.{node.target.id}"] = text
    return found


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


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return _number(as_toml(field.default))
    return None if field.default_factory is dataclasses.MISSING else as_toml(field.default_factory())


def _number(text: str) -> str:
    return re.sub(r"e-0(\d)$", r"e-\1", text)
