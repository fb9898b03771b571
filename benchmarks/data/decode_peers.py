"""Other libraries' pipelines, each as it is usually put together: decode, random resized crop, flip."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.data.formats import write_ffcv
from mvlm.data.images.decode import Box
from mvlm.data.images.transforms import crop_box

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Stack = Callable[[list[bytes]], object]


def torchvision(scale: tuple[float, float], as_float: bool) -> Stack:
    """As in most training scripts; `as_float`, with the normalised floats that they pass to the model."""
    from torchvision import transforms as v1

    last = [v1.ToTensor(), v1.Normalize(MEAN, STD)] if as_float else [v1.PILToTensor()]
    change = v1.Compose([v1.RandomResizedCrop(SIZE, scale), v1.RandomHorizontalFlip(), *last])
    return lambda images: torch.stack([change(Image.open(io.BytesIO(image)).convert("RGB")) for image in images])


def torchvision_v2(scale: tuple[float, float]) -> Stack:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandomResizedCrop(SIZE, scale, antialias=True), v2.RandomHorizontalFlip()])

    def one(image: bytes) -> torch.Tensor:
        return change(decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), ImageReadMode.RGB))

    return lambda images: torch.stack([one(image) for image in images])


def opencv(scale: tuple[float, float]) -> Stack:
    import simplejpeg

    rng = np.random.default_rng(0)

    def stack(images: list[bytes]) -> np.ndarray:
        out = np.empty((len(images), SIZE, SIZE, 3), np.uint8)
        for row, image in enumerate(images):
            height, width, _, _ = simplejpeg.decode_jpeg_header(image)
            view = opencv_view(image, crop_box(rng, width, height, scale))
            out[row] = view[:, ::-1] if rng.random() < 0.5 else view
        return out

    return stack


def opencv_view(image: bytes, box: Box) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3], by the closest that OpenCV has to an antialiased filter."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    left, top, right, bottom = box
    pixels = simplejpeg.decode_jpeg(image, "RGB")[top:bottom, left:right]
    smaller = min(right - left, bottom - top) > SIZE
    return cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def dali(scale: tuple[float, float], batch: int) -> Stack:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None, prefetch_queue_depth=1, seed=1)
    def build():
        image = fn.external_source(name="image", dtype=types.UINT8, ndim=1)
        image = fn.decoders.image_random_crop(image, device="cpu", output_type=types.RGB, random_area=list(scale))
        image = fn.resize(image, device="cpu", resize_x=SIZE, resize_y=SIZE)
        return fn.flip(image, device="cpu", horizontal=fn.random.coin_flip())

    pipeline = build(exec_async=False, exec_pipelined=False)
    pipeline.build()

    def stack(images: list[bytes]) -> np.ndarray:
        pipeline.feed_input("image", [np.frombuffer(image, np.uint8) for image in images])
        return pipeline.run()[0].as_array()

    return stack


def ffcv(scale: tuple[float, float], batches: list[list[bytes]]) -> Callable[[list[list[bytes]]], object]:
    """Whole epochs, from a file in its own format, as `write_ffcv` makes it."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    path = Path(tempfile.mkdtemp()) / "images.beton"
    write_ffcv([("", image, []) for batch in batches for image in batch], path)
    steps = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale), RandomHorizontalFlip(), ToTensor()]
    loader = Loader(
        str(path), batch_size=len(batches[0]), num_workers=1, order=OrderOption.RANDOM, pipelines={"image": steps}
    )
    return lambda _: list(loader)


def versions() -> dict[str, str]:
    found = {}
    for name in ("torchvision", "opencv-python-headless", "nvidia-dali-cuda120", "ffcv"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
