"""How fast encoded images become the model's input, against other libraries and against decoding alone.

    python benchmarks/data/photographs.py FOLDER_OF_PHOTOGRAPHS PHOTOGRAPHS
    taskset -c 0 python benchmarks/data/decode.py PHOTOGRAPHS

Decoding, random resized crop to 224 x 224, and flip, into batches of 64. Images per CPU second of one process with one
thread, medians of interleaved rounds in one run. Libraries that cannot be imported are left out, with a line saying so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

# A matrix library's threads that spin while waiting would count as CPU time of whatever runs meanwhile.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data import decode_peers as peers  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402
from mvlm.data.images.decode import Decoded, NativeJpeg, Picture, SimpleJpeg  # noqa: E402
from mvlm.data.images.transforms import crop_box, train_view  # noqa: E402

SIZE, BATCH = peers.SIZE, 64
RESULT = Path(__file__).parent / "results" / "decode.json"
SETTINGS = {
    "web, area 0.08 to 1": ("web", (0.08, 1.0)),
    "web, area 0.5 to 1": ("web", (0.5, 1.0)),
    "camera, area 0.08 to 1": ("camera", (0.08, 1.0)),
}
NATIVE, TORCHVISION, FULL, PART = (
    "native",
    "Pillow + torchvision v1, float",
    "only decoding, full",
    "only decoding, part",
)
GOALS = {TORCHVISION: 3.2, "FFCV": 1.8, FULL: 0.8, PART: 0.75}

Stack = Callable[[list[bytes]], object]
Round = Callable[[list[list[bytes]]], object]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("photographs", type=Path, help="the folder that photographs.py has written")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument(
        "--count", type=int, default=256, help="images per round (default: 256); a quarter as many large ones"
    )
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    arguments = words.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    for name, (folder, scale) in SETTINGS.items():
        paths = sorted((arguments.photographs / folder).glob("*.jpg"))
        count = arguments.count if folder == "web" else arguments.count // 4
        images = [paths[number % len(paths)].read_bytes() for number in range(count)]
        found[name] = measure(images, scale, arguments.rounds)
        print(name, json.dumps(found[name], indent=1), flush=True)
    found |= {"goals for native": GOALS, "rounds": arguments.rounds, "machine": machine() | peers.versions()}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(images: list[bytes], scale: tuple[float, float], rounds: int) -> dict[str, object]:
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    stacks = available(scale, batches)
    speeds: dict[str, list[float]] = {name: [] for name in stacks}
    for _ in range(rounds):
        for name, stack in stacks.items():
            start = time.process_time()
            stack(batches)
            speeds[name].append(len(images) / (time.process_time() - start))
    median = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    return {
        "images/CPU-s": median,
        "spread": {name: [round(min(values), 1), round(max(values), 1)] for name, values in speeds.items()},
        "native / it": {name: round(median[NATIVE] / value, 2) for name, value in median.items()},
        "grey levels from Pillow's, mean and 99th percentile": differences(images[:BATCH], scale),
        "images": len(images),
        "mean bytes": round(statistics.mean(map(len, images))),
    }


def available(scale: tuple[float, float], batches: list[list[bytes]]) -> dict[str, Round]:
    """The stacks that work here, warmed up."""
    makers: dict[str, Callable[[], Round]] = {
        NATIVE: lambda: each(ours(NativeJpeg.open, scale)),
        "native, with RandAugment": lambda: each(ours(NativeJpeg.open, scale, (2, 7))),
        "simplejpeg": lambda: each(ours(SimpleJpeg.open, scale)),
        "pillow": lambda: each(ours(Decoded.open, scale)),
        "simplejpeg + OpenCV": lambda: each(peers.opencv(scale)),
        TORCHVISION: lambda: each(peers.torchvision(scale, as_float=True)),
        "Pillow + torchvision v1, uint8": lambda: each(peers.torchvision(scale, as_float=False)),
        "torchvision decode_jpeg + v2, uint8": lambda: each(peers.torchvision_v2(scale)),
        "DALI": lambda: each(peers.dali(scale, len(batches[0]))),
        "FFCV": lambda: peers.ffcv(scale, batches),
        FULL: lambda: each(limit(None)),
        PART: lambda: each(limit(scale)),
    }
    stacks = {}
    for name, make in makers.items():
        try:
            stack = make()
            stack(batches[:1])
            stacks[name] = stack
        except Exception as error:  # a peer that does not work here must not stop the others
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:200]}", flush=True)
    return stacks


def each(stack: Stack) -> Round:
    def go(batches: list[list[bytes]]) -> None:
        for batch in batches:
            stack(batch)

    return go


def ours(
    opener: Callable[[bytes], Picture], scale: tuple[float, float], randaugment: tuple[int, int] = (0, 0)
) -> Stack:
    out = np.empty((BATCH, 3, SIZE, SIZE), np.uint8)
    rng = np.random.default_rng(0)

    def stack(images: list[bytes]) -> np.ndarray:
        for row, image in enumerate(images):
            train_view(opener(image), SIZE, rng, scale, True, randaugment, out[row])
        return out

    return stack


def limit(scale: tuple[float, float] | None) -> Stack:
    """Decoding alone, by the library that the extension is built with: the whole image, or what the crop needs."""
    library = limits()
    rng = np.random.default_rng(0)

    def stack(images: list[bytes]) -> None:
        for image in images:
            picture = NativeJpeg.open(image)
            box = (0, 0, picture.width, picture.height)
            if scale is not None:
                box = crop_box(rng, picture.width, picture.height, scale)
            if library.decode(image, len(image), *box):
                raise ValueError("libjpeg cannot decode this image")

    return stack


@cache
def limits() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.so"
        source = Path(__file__).parent / "limits.c"
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", str(source), "-o", str(path), "-ljpeg"], check=True)
        library = ctypes.CDLL(str(path))
    library.decode.argtypes = [ctypes.c_char_p, ctypes.c_size_t] + [ctypes.c_int] * 4
    return library


def differences(images: list[bytes], scale: tuple[float, float]) -> dict[str, list[float]]:
    """How far the same crops are from those that Pillow makes of the whole image: mean and 99th percentile."""
    found: dict[str, list[np.ndarray]] = {}
    rng = np.random.default_rng(1)
    for image in images:
        pictures = {"native": NativeJpeg.open(image), "simplejpeg": SimpleJpeg.open(image)}
        expected, view = np.empty((2, 3, SIZE, SIZE), np.uint8)
        reference = Decoded.open(image)
        box = crop_box(rng, reference.width, reference.height, scale)
        reference.show(box, SIZE, False, expected)
        for name, picture in pictures.items():
            picture.show(box, SIZE, False, view)
            found.setdefault(name, []).append(np.abs(view.astype(np.int16) - expected))
        with suppress(ImportError):
            other = peers.opencv_view(image, box).transpose(2, 0, 1)
            found.setdefault("simplejpeg + OpenCV", []).append(np.abs(other.astype(np.int16) - expected))
    return {name: [round(float(np.mean(d)), 3), float(np.percentile(d, 99))] for name, d in found.items()}


if __name__ == "__main__":
    main()
