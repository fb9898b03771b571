"""What a corpus of icons looks like: python examples/icons/sheet.py shards/icons/pairs sheet.png

The picture has 240 icons, evenly from the whole of it, and the rows of its largest designers and styles.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot

ACROSS, DOWN, SIDE = 24, 10, 64


def draw(folder: Path, out: Path) -> None:
    paths = [
        manifest.parent / shard["file"]
        for manifest in sorted(folder.rglob("manifest.json"))
        for shard in json.loads(manifest.read_text())["shards"]
    ]
    metas = [pq.read_table(path.with_suffix(".meta.parquet"), columns=["designer", "styles"]) for path in paths]
    starts = np.cumsum([0, *(len(meta) for meta in metas)])
    sheet = Image.new("RGB", (ACROSS * SIDE, DOWN * SIDE), "white")
    for place, row in enumerate(np.linspace(0, starts[-1] - 1, ACROSS * DOWN).astype(int)):
        number = int(np.searchsorted(starts, row, "right")) - 1
        with pa.memory_map(str(paths[number])) as mapped:
            image = pa.ipc.open_file(mapped).read_all()["image"][int(row - starts[number])].as_py()
        sheet.paste(Image.open(io.BytesIO(image)).convert("RGB"), (place % ACROSS * SIDE, place // ACROSS * SIDE))
    figure, axes = pyplot.subplot_mosaic([["sheet", "sheet"], ["designer", "styles"]], figsize=(16, 12))
    axes["sheet"].imshow(sheet)
    axes["sheet"].axis("off")
    for name in ("designer", "styles"):
        counts = Counter(value or "none" for meta in metas for value in meta[name].to_pylist()).most_common(20)[::-1]
        axes[name].barh([label for label, _ in counts], [count for _, count in counts])
        axes[name].set_title(f"rows by {name}")
    figure.tight_layout()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
