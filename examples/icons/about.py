"""Statistics and credits of a corpus of icons: python examples/icons/about.py shards/icons/pairs FOLDER

Prints its numbers, and writes FOLDER/icons_statistics.png and FOLDER/icons_attribution.md, which lists every set with
its author and licence and must accompany any picture or weights made from it.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq

matplotlib.use("Agg")
from matplotlib import pyplot

COLUMNS = ["set", "title", "author", "licence", "licence_url", "styles", "concept", "designer", "split"]
MOST = 20  # bars of a chart
Counts = list[tuple[str, int]]


def read(folder: Path) -> pa.Table:
    """The metadata of all corpora in a folder."""
    tables = sorted(folder.rglob("*.meta.parquet"))
    return pa.concat_tables(pq.read_table(path, columns=COLUMNS) for path in tables)


def numbers(table: pa.Table) -> dict[str, int]:
    """Rows, in all and per split; different sets, authors, designers, concepts; concepts of ten designers or more."""
    designers: dict[str, set[str]] = defaultdict(set)
    for concept, designer in zip(table["concept"].to_pylist(), table["designer"].to_pylist(), strict=True):
        designers[concept].add(designer)
    splits = Counter(table["split"].to_pylist()).most_common()
    counted = {"rows": len(table)} | {f"rows of {split}": count for split, count in splits}
    counted |= {f"different {name}s": len(table[name].unique()) for name in ("set", "author", "designer", "concept")}
    return counted | {"concepts drawn by ten designers or more": sum(len(each) >= 10 for each in designers.values())}


def attribution(table: pa.Table) -> str:
    """A page that names every set."""
    rows = Counter(zip(*(table[name].to_pylist() for name in COLUMNS[:5]), strict=True))
    lines = [
        "# Icons: attribution",
        "",
        "The pictures of [icons](icons.md), and weights trained on that corpus, are made of these sets,",
        "as the npm package `@iconify/json` holds them.",
        "",
        "| set | title | author | licence | icons |",
        "|---|---|---|---|---|",
    ]
    for (prefix, title, author, licence, url), count in sorted(rows.items()):
        link = f"[{licence}]({url})" if url else licence
        lines.append(f"| {prefix} | {_plain(title)} | {_plain(author)} | {link} | {count:,} |")
    return "\n".join(lines) + "\n"


def draw(table: pa.Table, out: Path) -> None:
    """Bar charts of the commonest designers, styles, licences and words of names."""
    words = Counter(word for concept in table["concept"].to_pylist() for word in concept.split())
    styles = Counter(value or "none" for value in table["styles"].to_pylist())
    shown = {
        "rows by designer": Counter(table["designer"].to_pylist()).most_common(MOST),
        "rows by style": styles.most_common(MOST),
        "rows by word of the name": words.most_common(MOST),
        "rows by licence": Counter(table["licence"].to_pylist()).most_common(MOST),
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9))
    for axis, (title, counts) in zip(axes.ravel(), shown.items(), strict=True):
        axis.barh([label for label, _ in counts[::-1]], [count for _, count in counts[::-1]], color="#0b6b5d")
        axis.set_title(title)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=75)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


if __name__ == "__main__":
    corpus, folder = read(Path(sys.argv[1])), Path(sys.argv[2])
    for name, count in numbers(corpus).items():
        print(f"{count:>9,} {name}")
    (folder / "icons_attribution.md").write_text(attribution(corpus), encoding="utf-8")
    draw(corpus, folder / "icons_statistics.png")
