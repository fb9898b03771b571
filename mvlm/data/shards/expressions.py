"""The Arrow expressions that conditions on metadata are made of, each with the kind of its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["number", "text", "truth", "missing"]

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_NO_NUMBER = pc.scalar(pa.nulls(1, pa.float64())[0])
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / pc.if_else(b == pc.scalar(0.0), _NO_NUMBER, b),  # or a single 0 would fail all rows
}
_MISSING = pc.scalar(pa.nulls(1, pa.bool_())[0])  # pa.scalar would do, but imports pandas


class Typed(NamedTuple):
    """An expression and the kind of its values."""

    expression: Any  # pc.Expression
    kind: Kind


Build = Callable[[pa.Schema], Typed]
"""Makes an expression for tables of a schema; a column that is not in it is missing in all rows."""


class Wrong(Exception):
    """What is wrong with a condition, as the end of a sentence."""


def column(schema: pa.Schema, name: str) -> Typed:
    if name not in schema.names or pa.types.is_null(type_ := schema.field(name).type):
        return Typed(_MISSING, "missing")
    field = pc.field(name)
    if pa.types.is_floating(type_):  # pandas writes NaN for a missing value
        return Typed(pc.if_else(pc.is_nan(field), pc.scalar(pa.scalar(None, type_)), field), "number")
    if pa.types.is_boolean(type_):
        return Typed(field, "truth")
    return Typed(field, "number" if pa.types.is_integer(type_) else "text")


def truth(typed: Typed, what: str) -> Any:
    if typed.kind not in ("truth", "missing"):
        raise Wrong(f"{what} is a {typed.kind}, where a condition is expected: compare it with a value")
    return typed.expression


def number(typed: Typed, what: str) -> Any:
    """As a double."""
    if typed.kind == "truth":
        raise Wrong(f"{what} is true or false, where a number is expected")
    if typed.kind == "text":
        readable = pc.match_substring_regex(typed.expression, _NUMBER)
        text = pc.if_else(readable, pc.utf8_trim_whitespace(typed.expression), pc.scalar(pa.scalar(None, pa.string())))
        return text.cast(pa.float64())
    return typed.expression.cast(pa.float64())


def both(left: Build, right: Build, join: Callable[[Any, Any], Any], what: str) -> Build:
    return lambda schema: Typed(join(truth(left(schema), what), truth(right(schema), what)), "truth")


def computed(left: Build, right: Build, sign: str) -> Build:
    def build(schema: pa.Schema) -> Typed:
        sides = (number(side(schema), f"what {sign!r} is between") for side in (left, right))
        return Typed(_ARITHMETIC[sign](*sides), "number")

    return build


def compare(left: Typed, right: Typed, sign: str) -> Typed:
    kinds = {left.kind, right.kind}
    if "missing" in kinds:
        return Typed(_MISSING, "missing")
    by_sign = COMPARE[sign]
    if kinds == {"number"}:
        return Typed(by_sign(left.expression, right.expression), "truth")
    if kinds == {"number", "text"}:
        return Typed(by_sign(*(number(side, "") for side in (left, right))), "truth")
    if len(kinds) > 1:
        raise Wrong(f"a {left.kind} and a {right.kind} are on the two sides of {sign!r}: compare values of one kind")
    return Typed(by_sign(left.expression, right.expression), "truth")


def is_null(left: Build, negated: bool) -> Build:
    def build(schema: pa.Schema) -> Typed:
        found = left(schema).expression.is_null()
        return Typed(~found if negated else found, "truth")

    return build


def is_in(left: Build, literals: list[Build], negated: bool) -> Build:
    def build(schema: pa.Schema) -> Typed:
        found, *others = (compare(left(schema), literal(schema), "=").expression for literal in literals)
        for other in others:
            found = found | other
        return Typed(~found if negated else found, "truth")

    return build
