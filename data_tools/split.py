"""Dividing records among named splits by a hash of one of their fields."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass

from mvlm.errors import UserError

from .record import Record, as_text

MISSING = "no field to split by"
UNNAMED = "field names none of the splits"


class NoSplit(Exception):
    """A record that falls into no split: `reason` is one of a few phrases, which are counted; `detail` explains."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Split:
    """Shares of the records by name, in order; records with the same value of `field` stay together.

    `field` is "key", "source" or one of the record's own fields. If no shares are given, all of them are 0 and the
    field's values are the splits' names.
    """

    shares: dict[str, float]
    field: str = "key"

    @property
    def remedy(self) -> str:
        """What to do about a split that nothing falls into."""
        if any(self.shares.values()):
            return "a hash of each decides, so raise its share, or add some"
        return f"leave it out, or fix what {self.field} says"

    def allot(self, record: Record) -> str:
        """The split's name, a function of the field's value alone.

        Raises:
            NoSplit: the record lacks the field, or its value should be a split's name and is not.
        """
        value = {"key": record.key, "source": record.source}.get(self.field, record.fields.get(self.field))
        if value is None:
            raise NoSplit(MISSING, self.field)
        text = as_text(value, sort_keys=True)
        if not any(self.shares.values()):
            if text in self.shares:
                return text
            raise NoSplit(UNNAMED, f"{self.field} is {text[:80]!r}")
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        bound = 0.0
        for name, share in self.shares.items():
            bound += share
            if point < bound:
                return name
        return name


def parse_split(text: str, field: str) -> Split:
    """Read `train=0.88,eval=0.12`, or `train,eval` if the values of `field` are the names.

    Raises:
        UserError: a name or share is malformed, a name is repeated, or the shares do not add up to 1.
    """
    if "=" not in text and field != "key":
        names = [part.strip() for part in text.split(",")]
        if len(set(names)) < len(names) or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names):
            raise UserError(f"--split {text!r} is malformed: write different names, like train,eval.")
        return Split(dict.fromkeys(names, 0.0), field)
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not re.fullmatch(r"\d*\.?\d+", share) or name in shares:
            raise UserError(f"--split {text!r} is malformed at {part!r}: write it like train=0.88,eval=0.12.")
        shares[name] = float(share)
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6) or not all(shares.values()):
        raise UserError(f"--split {text!r} adds up to {sum(shares.values()):g}: give shares above 0 that add up to 1.")
    return Split(shares, field)
