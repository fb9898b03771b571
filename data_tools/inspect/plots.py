"""The statistics of corpora as pictures, in one PNG or one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from .stats import MEASURES, SHOWN, table


def plots(stats: Mapping[str, dict[str, Any]], kind: str) -> bytes:
    """One row of charts per corpus: a histogram of each measure and bars of each counted column.

    `kind` is .png or .html; the HTML holds the picture and the numbers of every bar.
    """
    png = _figure(stats)
    return png if kind == ".png" else _page(stats, png).encode()


def _figure(stats: Mapping[str, dict[str, Any]]) -> bytes:
    import matplotlib  # a second to import, and only this needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wide = max(len(of_corpus["distributions"]) + len(of_corpus["counts"]) for of_corpus in stats.values())
    # A $ in a text from the corpus would otherwise be read as the start of a formula.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 8}):
        figure = Figure(figsize=(2.8 * wide, 2.6 * len(stats)), layout="constrained")
        grid = figure.subplots(len(stats), wide, squeeze=False)
        for row, (name, of_corpus) in zip(grid, stats.items(), strict=True):
            charts = iter(row)
            for measure, values in of_corpus["distributions"].items():
                axes, histogram = next(charts), values["histogram"]
                axes.stairs(histogram["counts"], histogram["edges"], fill=True)
                axes.set_title(MEASURES[measure], loc="left")
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            for column, counts in of_corpus["counts"].items():
                axes, shown = next(charts), list(counts.items())[:SHOWN]
                axes.barh(range(len(shown)), [rows for _, rows in shown])
                axes.set_yticks(range(len(shown)), [_label(value) for value, _ in shown])
                axes.invert_yaxis()
                axes.set_title(column.replace("_", " "), loc="left")
            for axes in charts:
                axes.set_visible(False)
            row[0].set_ylabel(name, fontsize=11)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _label(value: str) -> str:
    short = value if len(value) <= 20 else value[:19] + "…"
    return short or "(none given)"


def _page(stats: Mapping[str, dict[str, Any]], png: bytes) -> str:
    tables = "".join(f"<h2>{escape(name)}</h2><pre>{escape(table(found))}</pre>" for name, found in stats.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Statistics</title>'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\"><style>body{font:14px system-ui,sans-serif;margin:2rem}"
        "img{max-width:100%;background:#fff}</style></head><body><h1>Statistics</h1>"
        f'<img alt="Histograms" src="data:image/png;base64,{base64.b64encode(png).decode()}">{tables}</body></html>\n'
    )
