"""The cells as Markdown: for each corpus, number of CPU seconds and arm, the mean and the range over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

WAYS = ("image_to_text", "text_to_image")


def table(cells: Sequence[dict[str, Any]]) -> str:
    """R@10 of 200 test rows in both directions, and the mean recall on the rows to choose on, which chooses arms."""
    rows = [
        "| corpus | CPU s | arm | seeds | chosen by | R@10 image to text | text to image | kept best | CPU s of all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((c["corpus"], c.get("seconds", 0), c["arm"]) for c in cells)
    for corpus, seconds, arm in sorted(keys, key=lambda key: key[:2]):
        found = [c for c in cells if (c["corpus"], c.get("seconds", 0), c["arm"]) == (corpus, seconds, arm)]
        chosen = _mean([c["chosen"]["last"] for c in found if "chosen" in c])
        both = [_spread([_final(c["last"], way) for c in found]) for way in WAYS]
        best = [_spread([_final(c["best"], way) for c in found if "best" in c]) for way in WAYS]
        spent = _mean([c["cpu_s"] / 100 for c in found])
        rows.append(
            f"| {corpus} | {seconds:g} | `{arm}` | {len(found)} | {chosen} | {' | '.join(both)} | "
            f"{', '.join(best) if best[0] else ''} | {spent} |"
        )
    return "\n".join(rows)


def _final(found: dict[str, float], way: str) -> float:
    """R@10, re-ranked by ITM if that was trained."""
    return found.get(f"{way}_reranked", found[f"{way}_itc"])


def _mean(shares: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(shares):.1f}" if shares else ""


def _spread(shares: Sequence[float]) -> str:
    """Mean and range, such as 41.5 (40.0 to 43.0)."""
    if len(shares) < 2:
        return _mean(shares)
    return f"{_mean(shares)} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"
