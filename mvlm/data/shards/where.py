"""Conditions on a corpus's metadata, such as `similarity > 0.28 and nsfw != 'NSFW'`, as Arrow expressions.

    condition  = all { "or" all }               all     = negated { "and" negated }
    negated    = "not" negated | compared       value   = sum of products of atoms, with + - * /
    compared   = value [sign value | ["not"] "in" "(" literals ")" | "is" ["not"] "null"]
    sign       = one of = == != <> < <= > >=
    atom       = number | 'text' | "text" | true | false | column | `any column` | "(" condition ")"

Logic is SQL's: a comparison with a missing value is neither true nor false, and only rows whose condition is true are
kept. A text compared with a number is read as one, and counts as missing if it is none. Nothing is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvlm.data.shards.expressions import (
    COMPARE,
    Build,
    Kind,
    Typed,
    Wrong,
    both,
    column,
    compare,
    computed,
    is_in,
    is_null,
    number,
    truth,
)
from mvlm.errors import UserError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|`(?P<quoted>[^`]+)`|(?P<word>[^\W\d][\w.]*)|(?P<sign><=|>=|<>|!=|==|[-+*/=<>(),]))"
)
_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
MOST_NESTED = 50
"""Limit for nested parentheses, `not`s and signs, so that no condition exhausts the stack."""


@dataclass(frozen=True)
class Where:
    """A parsed condition; `parse` makes it.

    Attributes:
        columns: those it reads, in the order in which it names them.
    """

    text: str
    columns: tuple[str, ...]
    _build: Build

    def expression(self, schema: pa.Schema) -> Any:
        """The pyarrow.compute.Expression for tables of that schema, of type bool.

        Raises:
            UserError: values of these types cannot be used this way.
        """
        try:
            return truth(self._build(schema), "the condition")
        except Wrong as wrong:
            raise UserError(f"The condition {self.text!r} cannot be used: {wrong}.") from None


def parse(text: str) -> Where:
    """Read a condition.

    Raises:
        UserError: it is not a condition; says where it goes wrong.
    """
    try:
        reader = _Reader(text)
        build = reader.any()
        reader.expect("")
    except Wrong as wrong:
        raise UserError(
            f"The condition {text!r} cannot be read: {wrong}; write it like \"similarity > 0.28 and nsfw != 'NSFW'\"."
        ) from None
    return Where(text, tuple(dict.fromkeys(reader.columns)), build)


class _Reader:
    """Recursive descent, with one method per level of precedence."""

    def __init__(self, text: str) -> None:
        self.columns: list[str] = []
        self._text, self._at, self._depth = text, 0, 0
        self._advance()

    def any(self) -> Build:
        return self._joined("or", self._all, lambda a, b: a | b)

    def _all(self) -> Build:
        return self._joined("and", self._negated, lambda a, b: a & b)

    def _joined(self, word: str, part: Callable[[], Build], join: Callable[[Any, Any], Any]) -> Build:
        built = part()
        while self._accept(word):
            built = both(built, part(), join, f"what {word!r} joins")
        return built

    def _negated(self) -> Build:
        if not self._accept("not"):
            return self._compared()
        inner = self._nested(self._negated)
        return lambda schema: Typed(~truth(inner(schema), "what follows 'not'"), "truth")

    def _compared(self) -> Build:
        left = self._value()
        if (sign := self._token) in COMPARE and self._kind == "sign":
            self._advance()
            right = self._value()
            return lambda schema: compare(left(schema), right(schema), sign)
        if self._accept("is"):
            negated = self._accept("not")
            self.expect("null")
            return is_null(left, negated)
        negated = self._accept("not")
        if self._accept("in"):
            return is_in(left, self._literals(), negated)
        if negated:
            self._refuse("'in'")
        return left

    def _literals(self) -> list[Build]:
        self.expect("(")
        found = [self._literal()]
        while self._accept(","):
            found.append(self._literal())
        self.expect(")")
        return found

    def _literal(self) -> Build:
        columns = len(self.columns)
        built = self._sign()
        if len(self.columns) > columns:
            raise Wrong("the values in the parentheses after 'in' must be numbers or 'texts'")
        return built

    def _value(self) -> Build:
        return self._chain(("+", "-"), lambda: self._chain(("*", "/"), self._sign))

    def _chain(self, signs: tuple[str, str], part: Callable[[], Build]) -> Build:
        built = part()
        while (sign := self._token) in signs and self._kind == "sign":
            self._advance()
            built = computed(built, part(), sign)
        return built

    def _sign(self) -> Build:
        if self._accept("-"):
            inner = self._nested(self._sign)
            return lambda schema: Typed(pc.negate(number(inner(schema), "what follows '-'")), "number")
        return self._atom()

    def _atom(self) -> Build:
        kind, token = self._kind, self._token
        if kind == "sign" and token == "(":
            self._advance()
            inner = self._nested(self.any)
            self.expect(")")
            return inner
        if kind == "number":
            whole = token.isdigit() and float(token) < 1 << 63  # Arrow's integers are no larger
            return self._constant(pc.scalar(int(token) if whole else float(token)), "number")
        if kind == "text":
            return self._constant(pc.scalar(token[1:-1].replace(token[0] * 2, token[0])), "text")
        if kind == "word" and token in ("true", "false"):
            return self._constant(pc.scalar(token == "true"), "truth")
        if kind == "column":
            self._advance()
            self.columns.append(token)
            return lambda schema: column(schema, token)
        self._refuse("a column, a number or a 'text'")
        raise AssertionError

    def _constant(self, expression: Any, kind: Kind) -> Build:
        self._advance()
        return lambda schema: Typed(expression, kind)

    def _nested(self, inner: Callable[[], Build]) -> Build:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise Wrong(f"more than {MOST_NESTED} parts are nested in each other")
        built = inner()
        self._depth -= 1
        return built

    def _accept(self, token: str) -> bool:
        found = self._token == token and self._kind in ("word", "sign")
        if found:
            self._advance()
        return found

    def expect(self, token: str) -> None:
        """Consume a token; "" expects the end."""
        if token and not self._accept(token):
            self._refuse(f"{token!r}")
        if not token and self._kind != "end":
            self._refuse("'and', 'or' or its end")

    def _refuse(self, expected: str) -> None:
        where = f"at {self._text[self._start :][:20]!r}" if self._kind != "end" else "at its end"
        raise Wrong(f"{expected} is expected {where} (character {self._start + 1})")

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            rest = self._text[self._at :].lstrip()
            self._start, self._kind, self._token = len(self._text) - len(rest), "end", ""
            if rest:
                raise Wrong(f"{rest[:20]!r} (character {self._start + 1}) is not a part of a condition")
            return
        self._start, self._at = match.start(match.lastgroup or 0), match.end()
        self._kind, self._token = match.lastgroup or "", match[match.lastgroup or 0]
        if self._kind == "word":
            if self._token.lower() in _WORDS:
                self._token = self._token.lower()
            else:
                self._kind = "column"
        elif self._kind == "quoted":
            self._kind = "column"
