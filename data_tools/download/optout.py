"""Whether a site asks that its image not be taken, as img2dataset reads it: in a header of the answer."""

from __future__ import annotations

from multidict import CIMultiDictProxy

TOKEN = "mvlm"
"""The name by which a site may address this crawler alone."""

OPT_OUT = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
"""Directives of `X-Robots-Tag`; "none" is short for "noindex, nofollow"."""

WITH_VALUES = frozenset(("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"))
"""Directives that are followed by a colon, as the name of a crawler is."""


def opts_out(headers: CIMultiDictProxy[str]) -> str:
    """The header by which a site opts out, or ""; `TDM-Reservation: 1` is the W3C's TDM Reservation Protocol."""
    for value in headers.getall("X-Robots-Tag", ()):
        if _forbids(value):
            return f"X-Robots-Tag: {value}"[:200]
    return "TDM-Reservation: 1" if headers.get("TDM-Reservation", "").strip() == "1" else ""


def _forbids(value: str) -> bool:
    """Whether a directive applies to us: those after a crawler's name are for it alone, up to the next name."""
    ours = True
    for directive in value.lower().split(","):
        name, colon, rest = directive.partition(":")
        if colon and name.strip() not in WITH_VALUES:
            ours, directive = name.strip() == TOKEN, rest
        if ours and directive.strip() in OPT_OUT:
            return True
    return False
