"""The loaders that ours is compared with, each as in its documentation: shuffled, endless batches."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data.formats import BATCH

SIZE, WORKERS, SCALE = 224, 2, (0.08, 1.0)
BUFFER = 1000  # samples of a shuffle buffer

Collate = Callable[[Sequence[Any]], Any]
"""Samples or encoded images -> the contents of a batch."""


class Peer(NamedTuple):
    format: str  # the one that it reads, in formats.py
    batches: Callable[[Path], Iterator[Any]]


def same_decoding(images: Sequence[Any]) -> Any:
    """What our loader does to each image."""
    import numpy as np
    import torch

    from mvlm.data.images.decode import open_picture
    from mvlm.data.images.transforms import train_view

    rng = np.random.default_rng()
    return torch.from_numpy(
        np.stack([train_view(open_picture(image), SIZE, rng, SCALE, True, (0, 0)) for image in images])
    )


def pillow(images: Sequence[Any]) -> Any:
    """As most training scripts do it, including normalisation."""
    import io

    import torch
    from PIL import Image
    from torchvision import transforms

    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, SCALE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    return torch.stack([chain(Image.open(io.BytesIO(image)).convert("RGB")) for image in images])


def same_work() -> Collate:
    """Also tokenise and mask, a batch at a time, as transformers' collator does it."""
    import torch

    tokenizer = make_tokenizer()

    def collate(samples: Sequence[Any]) -> Any:
        images = same_decoding([sample["jpg"] for sample in samples])
        captions = [random.choice(_captions(sample)) for sample in samples]
        words = tokenizer(captions, padding=True, truncation=True, max_length=30, return_tensors="pt")
        text_BL = words["input_ids"]
        hidden_BL = torch.rand(text_BL.shape) < 0.3
        hidden_BL &= ~torch.isin(text_BL, torch.tensor(tokenizer.all_special_ids))
        draw_BL = torch.rand(text_BL.shape)
        shown_BL = torch.where(draw_BL < 0.9, torch.randint(len(tokenizer), text_BL.shape), text_BL)
        shown_BL[draw_BL < 0.8] = tokenizer.mask_token_id
        masked_BL = torch.where(hidden_BL, shown_BL, text_BL)
        target_BL = text_BL.masked_fill(~hidden_BL, -100)
        blocks_BK = torch.rand(len(samples), 49).argsort(1).argsort(1) < 30
        mask_BHW = blocks_BK.view(-1, 7, 7).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return images, text_BL, words["attention_mask"], masked_BL, target_BL, mask_BHW.flatten(1)

    return collate


def _captions(sample: dict[str, Any]) -> list[str]:
    found = sample["json"] if "json" in sample else sample["captions"]
    return found if isinstance(found, list) else json.loads(found)


def make_tokenizer() -> Any:
    from benchmarks.data.corpus import captions
    from mvlm.data.samples.tokenizer import train_tokenizer

    return train_tokenizer([caption for number in range(200) for caption in captions(number)], 2000)


def webdataset(out: Path, collate: Collate, field: str | None = None) -> Iterator[Any]:
    import webdataset

    tars = sorted(map(str, out.glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=100, seed=1).repeat().shuffle(BUFFER, seed=1)
    data = data.map(itemgetter(field)) if field else data
    batches = data.batched(BATCH, collation_fn=collate, partial=False)
    return iter(webdataset.WebLoader(batches, batch_size=None, num_workers=WORKERS))


def mds(out: Path, collate: Collate) -> Iterator[Any]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return _endless(_loader(StreamingDataset(local=str(out), shuffle=True, batch_size=BATCH, shuffle_seed=1), collate))


def litdata(out: Path, collate: Collate) -> Iterator[Any]:
    import litdata

    data = litdata.StreamingDataset(str(out), shuffle=True, seed=1)
    options = {"batch_size": BATCH, "num_workers": WORKERS, "drop_last": True}
    return _endless(litdata.StreamingDataLoader(data, collate_fn=collate, **options))


def hf_datasets(out: Path, collate: Collate) -> Iterator[Any]:
    import datasets

    return _endless(_loader(datasets.load_from_disk(str(out)), collate, shuffle=True))


def ffcv(out: Path) -> Iterator[Any]:
    """With its own decoding, in threads."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    steps = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), SCALE), RandomHorizontalFlip(), ToTensor()]
    options = {"num_workers": WORKERS, "order": OrderOption.RANDOM, "pipelines": {"image": steps}}
    return _endless(Loader(str(out), batch_size=BATCH, **options))


def dali(out: Path) -> Iterator[Any]:
    """With its own decoding, in threads, from webdataset's shards."""
    from nvidia.dali import fn, pipeline_def, types

    tars = sorted(map(str, out.glob("*.tar")))

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, seed=1)
    def build():
        image = fn.readers.webdataset(paths=tars, ext=["jpg"], random_shuffle=True, initial_fill=BUFFER)
        image = fn.decoders.image_random_crop(image, device="cpu", output_type=types.RGB, random_area=list(SCALE))
        image = fn.resize(image, device="cpu", resize_x=SIZE, resize_y=SIZE)
        return fn.flip(image, device="cpu", horizontal=fn.random.coin_flip())

    pipeline = build()
    pipeline.build()
    while True:
        yield pipeline.run()[0].as_array()


def _loader(data: Any, collate: Collate, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(data, BATCH, num_workers=WORKERS, collate_fn=collate, drop_last=True, **options)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


SAME_WORK, PILLOW = "webdataset", "webdataset, Pillow + torchvision, no words or masks"
PEERS = {
    SAME_WORK: Peer("webdataset", lambda out: webdataset(out, same_work())),
    "MDS": Peer("MDS", lambda out: mds(out, same_work())),
    "litdata": Peer("litdata", lambda out: litdata(out, same_work())),
    "HF datasets": Peer("HF datasets", lambda out: hf_datasets(out, same_work())),
    PILLOW: Peer("webdataset", lambda out: webdataset(out, pillow, "jpg")),
    "FFCV, its own decoding": Peer("FFCV", ffcv),
    "DALI, its own decoding": Peer("webdataset", dali),
}
