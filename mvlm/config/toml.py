"""Frozen dataclasses from the tables of a strict TOML file, and back; one sentence for every mistake in it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mvlm.errors import Mistakes, UserError


def read_tables(path: str | Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        what: the file is, for the message if it is missing.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"No {what} at {path}: give the path of a TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML ({error}): fix that line.") from None


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a value, which may be nested tables and arrays."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def as_toml(value: Any) -> str:
    """A value as written in a TOML file; raises `UserError` for one that TOML cannot hold, such as None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # TOML's escapes are JSON's, except for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(str(k))} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, PathLike):
        return as_toml(fspath(value))
    if hasattr(value, "tolist"):  # numpy's or torch's
        return as_toml(value.tolist())
    if not isinstance(value, (int, float)):
        raise UserError(f"{value!r} cannot be a setting: give a number, a text, a list or a table, or leave it out.")
    return repr(value)


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Set one `table.key=value`, the value in TOML syntax or a bare string.

    Raises:
        UserError: it is not of that form.
    """
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(f"The override {override!r} is not of the form table.key=value: write it like train.steps=100.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for key in keys[:-1]:
        tables = tables.setdefault(key, {})
        if not isinstance(tables, dict):
            raise UserError(f"The override {override!r} treats {key!r} as a table, and it is not one: name the key.")
    tables[keys[-1]] = value


def build(
    cls: type, values: Any, where: str, prefix: str, mistakes: Mistakes, meant: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """The dataclass `cls` from a table; `where` names the file and `prefix` the table, for messages.

    An unknown key, or a value of the wrong type, is added to `mistakes`; the default takes its place, or None if there
    is none. `meant` maps what an unknown key may be called to the full name of the key that is meant.
    """
    if not isinstance(values, dict):
        mistakes.add(f"{where}: {prefix.rstrip('.')} must be a table, not {values!r}.")
        values = {}
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    built: dict[str, Any] = {f.name: None for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    for name, value in values.items():
        if name not in hints:
            close = [f"{prefix}{each}" for each in difflib.get_close_matches(name, hints, n=1, cutoff=0.5)]
            likely = [meant[name]] if name in meant else close
            hint = f"did you mean {likely[0]}?" if likely else f"known are {', '.join(sorted(hints))}."
            mistakes.add(f"{where}: unknown key {prefix}{name}; {hint}")
        elif dataclasses.is_dataclass(hints[name]):
            table = typing.cast(type, hints[name])
            built[name] = build(table, value, where, f"{prefix}{name}.", mistakes, meant)
        else:
            with mistakes.gathered():
                built[name] = _convert(hints[name], value, f"{where}: {prefix}{name}")
    return cls(**built)


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Check `value` against the annotation `kind`; a whole number serves as a float, a string as a list of one and an
    empty string as an empty list."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{name} is {value!r}: choose one of {', '.join(map(repr, args))}.")
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_any(args, value, name)
    if origin is tuple:
        if args[0] is str and isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            words = as_toml([word.strip() for word in value[1:-1].split(",")])
            raise UserError(f"{name} is {value!r}, a text and not a list: write '{words}', with both kinds of quotes.")
        items = ([value] if value else []) if isinstance(value, str) else value
        if not isinstance(items, list) or (args[-1] is not Ellipsis and len(items) != len(args)):
            length = "" if args[-1] is Ellipsis else f" of {len(args)}"
            raise UserError(f"{name} is {value!r}: give a list{length}.")
        return tuple(_convert(args[0], item, name) for item in items)
    expected = origin or kind
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{name} is too large a number: give a smaller one.") from None
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise UserError(f"{name} is {value!r}: give {_article(expected)}.")
    return value


def _convert_any(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """`value` as one of several kinds; if it is none of them, the message names all."""
    words = [repr(word) for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    for kind in kinds:
        with contextlib.suppress(UserError):
            return _convert(kind, value, name)
    plain = [_article(kind) for kind in kinds if typing.get_origin(kind) is not Literal]
    raise UserError(f"{name} is {value!r}: give {' or '.join([*plain, *words])}.")


def _article(kind: type) -> str:
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "a table"}
    return words.get(kind, kind.__name__)
