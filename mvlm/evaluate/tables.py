"""Results as tables with their protocol, for a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def render(table: Table, protocol: str) -> str:
    """The table, and under it the protocol that the numbers follow."""
    out = io.StringIO()
    console = Console(file=out, width=110)
    console.print(table)
    console.print(protocol, markup=False, highlight=False)
    return out.getvalue()


def percent(share: float, interval: list[float] | None = None) -> str:
    """12.3, or 12.3 (10.1-14.5)."""
    ends = f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.1f}{ends}"
