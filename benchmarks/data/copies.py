"""How well `--dedup perceptual` and `--exclude` tell copies of pictures from pictures that only resemble them.

    python benchmarks/data/copies.py emoji.tar clipart.tar

For each corpus: what would be dropped as near duplicates, and how much of that is visibly different; how many copies of
each kind are found; and how many pictures of one corpus are mistaken for some of another. What is in the results is not
measured again: the same command resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.dedup import row_perceptual_hash
from data_tools.near import NearJoin, PicturePairs
from data_tools.perceptual_hash import CUTS, SEEN, read_perceptual_hash
from data_tools.perceptual_hash_file import PerceptualHashFile

RESULTS = Path(__file__).parent / "results/copies.json"
SAMPLE = 500
HASH_ALONE = 4
"""Bits by which hashes may differ for pictures to be dropped by the hash alone, as was once done."""

CELLS, LEVELS, VISIBLE = 40, 32, 0.02
"""Two pictures are visibly different if, of 40 x 40 cells, more than 2 % differ by more than 32 grey levels."""

Resampling = Image.Resampling


def pictures(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as content:
        files = [member for member in content if member.isfile() and "/images/" in member.name]
        return {Path(file.name).stem: content.extractfile(file).read() for file in files}


def encoded(image: Image.Image, quality: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float, way: Resampling = Resampling.BICUBIC) -> Image.Image:
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), way)


def cropped(image: Image.Image, most: float, chance: random.Random) -> Image.Image:
    left, right, top, bottom = (chance.uniform(0, most) for _ in range(4))
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round(width - right * width), round(height - bottom * height))
    )


KINDS: dict[str, Callable[[Image.Image, random.Random], bytes]] = {
    "JPEG of quality 75": lambda image, _: encoded(image, 75),
    "JPEG of quality 50": lambda image, _: encoded(image, 50),
    "JPEG of quality 30": lambda image, _: encoded(image, 30),
    "WebP of quality 60": lambda image, _: encoded(image, 60, "WEBP"),
    "half the size": lambda image, _: encoded(scaled(image, 0.5), 85),
    "a quarter of the size": lambda image, _: encoded(scaled(image, 0.25), 85),
    "1.5 times the size": lambda image, _: encoded(scaled(image, 1.5), 85),
    "made square": lambda image, _: encoded(image.resize((round((image.width * image.height) ** 0.5),) * 2), 85),
    "cropped by up to 2 % a side": lambda image, chance: encoded(cropped(image, 0.02, chance), 85),
    "cropped by up to 5 % a side": lambda image, chance: encoded(cropped(image, 0.05, chance), 85),
    "the same at half the size": lambda image, chance: encoded(scaled(cropped(image, 0.05, chance), 0.5), 75),
    "cropped by up to 10 % a side": lambda image, chance: encoded(cropped(image, 0.10, chance), 85),
}


def differ(one: bytes, other: bytes) -> bool:
    """Whether two whole pictures are visibly different, judged independently of what is measured."""
    size = (4 * CELLS, 4 * CELLS)
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(size), np.float32) for data in (one, other))
    cells = np.abs(a - b).max(2).reshape(CELLS, 4, CELLS, 4).mean((1, 3))
    return bool((cells > LEVELS).mean() > VISIBLE)


def joined(looks: Sequence[bytes], known: int = 0, among: bool = True) -> PicturePairs:
    """Pairs of pictures, by number, that may be the same: none of two `known` ones and, unless `among`, of two
    others."""
    seen = np.frombuffer(b"".join(look[: SEEN.itemsize] for look in looks), SEEN)
    join = NearJoin(Path(tempfile.gettempdir()), 1 << 30, len(CUTS))
    join.add(np.arange(len(looks), dtype=np.uint64), seen["hashes"], seen["corners"].sum(1, dtype=np.int64) // 32)
    return join.pairs(known, among)


def dedup(images: dict[str, bytes], looks: dict[str, bytes]) -> dict[str, object]:
    """What is dropped from a corpus, and what would be by the hash alone."""
    kept, names, hashes = PerceptualHashFile(Path(tempfile.gettempdir())), list(looks), np.empty(0, np.uint64)
    near, numbers = joined(list(looks.values())), {}
    alone, pairs, kept_alone = [], [], []
    for place, (name, look) in enumerate(looks.items()):
        value = np.uint64(read_perceptual_hash(look).hashes[0])
        like = np.flatnonzero(np.bitwise_count(hashes ^ value) <= HASH_ALONE)
        if len(like):
            alone.append((name, kept_alone[like[0]]))
        else:
            hashes, kept_alone = np.append(hashes, value), [*kept_alone, name]
        twin = kept.twin(look, [numbers[one] for one in near.earlier(place).tolist() if one in numbers])
        if twin:
            pairs.append((name, twin))
        else:
            numbers[place] = kept.add(look, names[place])
    found = {"pictures": len(images), "dropped": len(pairs), "dropped by the hash alone": len(alone)}
    found["visibly different"] = sum(differ(images[one], images[other]) for one, other in pairs)
    found["visibly different by the hash alone"] = sum(differ(images[one], images[other]) for one, other in alone)
    return found | {"pairs": [" = ".join(pair) for pair in pairs]}


def twins(known: dict[str, bytes], asked: Sequence[bytes]) -> list[str]:
    """For each picture asked about, the name of the known picture that it is a copy of, or ""."""
    pictures = PerceptualHashFile(Path(tempfile.gettempdir()))
    for name, look in known.items():
        pictures.add(look, name)
    pairs = joined([*known.values(), *asked], len(known), False)
    return [pictures.twin(look, pairs.earlier(len(known) + place).tolist()) for place, look in enumerate(asked)]


def recall(images: dict[str, bytes], looks: dict[str, bytes], kind: str) -> dict[str, object]:
    chance = random.Random(kind)
    chosen = random.Random(0).sample(sorted(images), min(SAMPLE, len(images)))
    copies = [KINDS[kind](Image.open(io.BytesIO(images[name])).convert("RGB"), chance) for name in chosen]
    found = twins(looks, [row_perceptual_hash((kind, copy)) for copy in copies])
    return {"copies": len(chosen), "found": sum(map(bool, found))}


def measurements(tars: list[Path]) -> Iterator[tuple[str, Callable[[], dict[str, object]]]]:
    corpora = {tar.stem: pictures(tar) for tar in tars}
    looks = {
        name: {key: row_perceptual_hash((key, data)) for key, data in images.items()}
        for name, images in corpora.items()
    }
    for name, images in corpora.items():
        yield f"{name}: near duplicates", lambda images=images, name=name: dedup(images, looks[name])
        for kind in KINDS:
            yield f"{name}: {kind}", lambda images=images, name=name, kind=kind: recall(images, looks[name], kind)
        for other in corpora.keys() - {name}:
            yield f"{other} without {name}", lambda name=name, other=other: without(looks[other], looks[name])


def without(asked: dict[str, bytes], known: dict[str, bytes]) -> dict[str, object]:
    found = zip(asked, twins(known, list(asked.values())), strict=True)
    return {"pictures": len(asked), "excluded": [f"{key} = {twin}" for key, twin in found if twin]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", type=Path, nargs="+", metavar="TAR", help="tar of a source folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for name, measure in measurements(arguments.tars):
        if name not in results:
            results[name] = measure()
            arguments.results.write_text(json.dumps(results, indent=1) + "\n")
        print(name, {key: value for key, value in results[name].items() if not isinstance(value, list)}, flush=True)


if __name__ == "__main__":
    main()
