"""JPEGs cut from a folder of real photographs, such as those in Debian's packages of desktop backgrounds.

    python benchmarks/data/photographs.py FOLDER OUT

Writes OUT/web, images of about 500 x 375 pixels as in web corpora, and OUT/camera, of 2 to 12 megapixels. Each is a
random part of a photograph, scaled down so that it keeps a camera's detail, with a sensor's noise; a photograph that is
too small for a large image is scaled up. As in scraped corpora, 8 % are 4:4:4, 2 % progressive and 1 % grey.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

WEB = ((500, 375), (500, 375), (500, 375), (375, 500), (640, 480), (500, 333), (333, 500), (500, 500), (320, 240))
CAMERA = ((1920, 1080), (2048, 1536), (3264, 2448), (2448, 3264), (4000, 3000))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path, help="photographs as JPEGs, in any sub-folders")
    words.add_argument("out", type=Path)
    words.add_argument("--web", type=int, default=1000, help="images (default: 1000)")
    words.add_argument("--camera", type=int, default=50, help="images (default: 50)")
    arguments = words.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*.jp*g") if path.stat().st_size > 300_000)
    photographs = [Image.open(path).convert("RGB") for path in paths]
    for name, sizes, count in (("web", WEB, arguments.web), ("camera", CAMERA, arguments.camera)):
        (arguments.out / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            random = np.random.default_rng((len(name), number))
            image = cut(random, photographs[random.integers(len(photographs))], sizes[number % len(sizes)])
            save(random, image, arguments.out / name / f"{number:06d}.jpg")


def cut(random: np.random.Generator, photograph: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A random part, scaled to `size` from at most four times that, with noise."""
    zoom = min(random.uniform(1, 4), photograph.width / size[0], photograph.height / size[1])
    width, height = int(size[0] * zoom), int(size[1] * zoom)
    left, top = random.integers(photograph.width - width + 1), random.integers(photograph.height - height + 1)
    box = (left, top, left + width, top + height)
    pixels = np.asarray(photograph.resize(size, Image.Resampling.LANCZOS, box), np.float32)
    noise = random.normal(0, random.uniform(0.5, 4), (size[1], size[0], 1))
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def save(random: np.random.Generator, image: Image.Image, path: Path) -> None:
    kind = random.random()
    image = image.convert("L") if kind < 0.01 else image
    subsampling = "4:4:4" if kind < 0.09 else "4:2:0"
    image.save(path, quality=int(random.integers(85, 93)), subsampling=subsampling, progressive=0.09 <= kind < 0.11)


if __name__ == "__main__":
    main()
