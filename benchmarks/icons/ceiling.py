"""How far designers agree on names, which limits how well foils can be recognised: python -m benchmarks.icons.ceiling

For each row of foils, the nearest drawing is sought among those to which other designers give its caption or its foil.
The share of rows whose nearest drawing has the caption estimates the ceiling for a model that knows names only from
others' pictures. Rows without drawings of both by other designers are left out. results/ceiling.json has, for opposites
and styles, the shares by row and, as docs/claim2.md measures foils, by unit: the mean over groups of concepts, all of
the same weight, with a 95 % interval over groups.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.claim.paired import LEVEL, student_quantile
from benchmarks.kept import code_version

RESULTS = Path(__file__).parent / "results"
KINDS = ("opposites", "styles")
SIDES = (16, 8, 32)
"""Pixels a side at which drawings are compared, on which the estimate depends. At the first, for which everything is
reported, shifts by half the width of a stroke make no difference."""
FINEST = max(SIDES)
Drawn = dict[str, tuple[np.ndarray, np.ndarray]]
"""By caption: the designers of the drawings that have it, and the drawings, uint8 [N, FINEST, FINEST]."""
Found = list[tuple[str, str, float]]
"""For each row: its group of concepts, the exchanged words, and 1 if its nearest drawing has its caption."""


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all corpora in a folder, each with its designer and group."""
    for manifest in sorted(folder.rglob("manifest.json")):
        for shard in json.loads(manifest.read_text())["shards"]:
            path = manifest.parent / shard["file"]
            about = pq.read_table(path.with_suffix(".meta.parquet"), columns=["designer", "group"]).to_pylist()
            with pa.memory_map(str(path)) as mapped:
                reader, at = pa.ipc.open_file(mapped), 0
                for number in range(reader.num_record_batches):
                    for row in reader.get_batch(number).to_pylist():
                        yield row | about[at]
                        at += 1


def vector(image: bytes) -> np.ndarray:
    """uint8 [FINEST, FINEST]"""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("L").resize((FINEST, FINEST), Image.Resampling.BOX))


def drawings(pairs: Path, foils: Sequence[dict[str, Any]]) -> Drawn:
    """The drawings of the captions and foils of some rows."""
    wanted = {text for row in foils for text in (row["caption"], row["foil"])}
    found: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for row in rows(pairs):
        for caption in wanted.intersection(row["captions"]):
            found[caption].append((row["designer"], vector(row["image"])))
    return {text: (np.array([who for who, _ in each]), np.stack([v for _, v in each])) for text, each in found.items()}


def judged(drawn: Drawn, foils: Sequence[dict[str, Any]], side: int = SIDES[0]) -> Found:
    """Judge the rows of `foils` for which other designers have drawn both caption and foil."""
    found = []
    for row in foils:
        here = _at(vector(row["image"])[None], side)
        near = []
        for text in (row["caption"], row["foil"]):
            designers, pictures = drawn.get(text, (np.array([]), np.empty((0, FINEST, FINEST))))
            others = pictures[designers != row["designer"]]
            near.append(float(((_at(others, side) - here) ** 2).mean((1, 2)).min(initial=np.inf)))
        if max(near) < np.inf:
            found.append((row["group"], row["swapped"], float(np.heaviside(near[1] - near[0], 0.5))))
    return found


def _at(pictures: np.ndarray, side: int) -> np.ndarray:
    """float64 [N, side, side]: means of squares."""
    step = FINEST // side
    return pictures.reshape(-1, side, step, side, step).mean((2, 4))


def shares(found: Found) -> dict[str, tuple[float, int]]:
    """By exchanged words: the share of rows whose nearest drawing has their caption, and the number of rows."""
    of: dict[str, list[float]] = defaultdict(list)
    for _, words, right in found:
        for kind in ("all", words):
            of[kind].append(right)
    return {kind: (sum(of[kind]) / len(of[kind]), len(of[kind])) for kind in sorted(of, key=lambda k: -len(of[k]))}


def by_unit(found: Found) -> dict[str, float]:
    """The mean over groups of their rows' shares, its interval, and the number of groups."""
    of: dict[str, list[float]] = defaultdict(list)
    for group, _, right in found:
        of[group].append(right)
    mean_U = np.array([sum(each) / len(each) for each in of.values()])
    mean, units = float(mean_U.mean()), len(mean_U)
    reach = student_quantile((1 + LEVEL) / 2, units - 1) * float(mean_U.std(ddof=1)) / units**0.5 if units > 1 else 1.0
    return {"share": mean, "low": max(0.0, mean - reach), "high": min(1.0, mean + reach), "groups": units}


def ceiling(drawn: Drawn, foils: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results for one kind of foils."""
    found = judged(drawn, foils)
    coarser_or_finer = {str(side): by_unit(judged(drawn, foils, side))["share"] for side in SIDES[1:]}
    return {"by_unit": by_unit(found), "by_unit_at_other_sides": coarser_or_finer, "by_row": shares(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("shards/icons"), help="made by examples/icons/make.sh")
    args = parser.parse_args()
    foils = {kind: list(rows(args.shards / "foils" / kind)) for kind in KINDS}
    drawn = drawings(args.shards / "pairs", [row for kind in KINDS for row in foils[kind]])
    told = {kind: ceiling(drawn, foils[kind]) for kind in KINDS}
    for kind, found in told.items():
        unit = found["by_unit"]
        print(f"{kind}: {unit['share']:.1%} ({unit['low']:.1%} to {unit['high']:.1%}) over {unit['groups']:,} groups")
        for words, (share, number) in found["by_row"].items():
            print(f"{words:28} {share:6.1%} of {number:,} rows")
    RESULTS.mkdir(exist_ok=True)
    told = {"commit": code_version(), "side": SIDES[0], **told}
    (RESULTS / "ceiling.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
