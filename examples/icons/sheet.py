"""A sheet of icons taken evenly from a whole corpus: python examples/icons/sheet.py shards/icons/pairs sheet.png"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

ACROSS, DOWN, SIDE = 24, 10, 48
GREYS = 16  # enough for black strokes with smooth edges


def draw(folder: Path, out: Path) -> None:
    manifests = sorted(folder.rglob("manifest.json"))
    shards = [(path.parent, shard) for path in manifests for shard in json.loads(path.read_text())["shards"]]
    starts = np.cumsum([0, *(shard["rows"] for _, shard in shards)])
    sheet = Image.new("L", (ACROSS * SIDE, DOWN * SIDE), "white")
    for place, row in enumerate(np.linspace(0, starts[-1] - 1, ACROSS * DOWN).astype(int)):
        number = int(np.searchsorted(starts, row, "right")) - 1
        parent, shard = shards[number]
        with pa.memory_map(str(parent / shard["file"])) as mapped:
            image = pa.ipc.open_file(mapped).read_all()["image"][int(row - starts[number])].as_py()
        icon = Image.open(io.BytesIO(image)).convert("L").resize((SIDE - 8, SIDE - 8), Image.Resampling.LANCZOS)
        sheet.paste(icon, (place % ACROSS * SIDE + 4, place // ACROSS * SIDE + 4))
    sheet.quantize(GREYS).save(out, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
