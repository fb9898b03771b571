"""The formats that are compared: each writes a corpus, and reads it in order and row by row.

Callers skip a format whose library is not installed; a way of reading that a format does not have is None.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

Record = tuple[str, bytes, list[str]]  # key, JPEG, captions

SHARD = 64 << 20
BATCH = 64


class Format(NamedTuple):
    write: Callable[[Iterable[Record], Path], None]
    in_order: Callable[[Path], Iterator[Any]] | None  # images, bytes or the like
    by_row: Callable[[Path], tuple[int, Callable[[int], Any]]] | None  # the number of rows, and a row -> its image


def write_mvlm(records: Iterable[Record], out: Path, shard: int = SHARD) -> None:
    from benchmarks.data.corpus import SIZE
    from data_tools.writer import CorpusWriter

    writer = CorpusWriter(out, shard)
    for key, image, captions in records:
        row = {"key": key, "image": image, "captions": tuple(captions), "source": ""}
        writer.add(SimpleNamespace(**row, width=SIZE[0], height=SIZE[1], crc32=zlib.crc32(image)))
    writer.close()


def mvlm_by_row(out: Path) -> tuple[int, Callable[[int], Any]]:
    from mvlm.data.shards.mixture import Mixture

    mixture = Mixture([out])
    return len(mixture), lambda row: mixture.row(row).image


def mvlm_in_order(out: Path) -> Iterator[Any]:
    rows, image = mvlm_by_row(out)
    return map(image, range(rows))


def write_folder(records: Iterable[Record], out: Path) -> None:
    out.mkdir()
    captions = {}
    for key, image, texts in records:
        (out / f"{key}.jpg").write_bytes(image)
        captions[key] = texts
    (out / "captions.json").write_text(json.dumps(captions))


def folder_by_row(out: Path) -> tuple[int, Callable[[int], Any]]:
    keys = list(json.loads((out / "captions.json").read_text()))

    def image(row: int) -> bytes:
        with open(f"{out}/{keys[row]}.jpg", "rb") as file:
            return file.read()

    return len(keys), image


def folder_in_order(out: Path) -> Iterator[Any]:
    rows, image = folder_by_row(out)
    return map(image, range(rows))


def write_webdataset(records: Iterable[Record], out: Path) -> None:
    import webdataset

    out.mkdir()
    with webdataset.ShardWriter(f"{out}/%05d.tar", maxsize=SHARD, verbose=0) as writer:
        for key, image, captions in records:
            writer.write({"__key__": key, "jpg": image, "json": captions})


def webdataset_in_order(out: Path) -> Iterator[Any]:
    import webdataset

    tars = sorted(map(str, out.glob("*.tar")))
    return (sample["jpg"] for sample in webdataset.WebDataset(tars, shardshuffle=False))


def write_mds(records: Iterable[Record], out: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(
        out=str(out), columns={"key": "str", "jpg": "bytes", "captions": "json"}, size_limit=SHARD
    ) as writer:
        for key, image, captions in records:
            writer.write({"key": key, "jpg": image, "captions": captions})


def mds_by_row(out: Path) -> tuple[int, Callable[[int], Any]]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    data = StreamingDataset(local=str(out), shuffle=False, batch_size=BATCH)
    return len(data), lambda row: data[row]["jpg"]


def mds_in_order(out: Path) -> Iterator[Any]:
    rows, image = mds_by_row(out)
    return map(image, range(rows))


def write_litdata(records: Iterable[Record], out: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    out.mkdir()
    writer = BinaryWriter(str(out), chunk_bytes=SHARD)
    for row, (key, image, captions) in enumerate(records):
        writer[row] = {"key": key, "jpg": image, "captions": json.dumps(captions)}
    writer.done()
    writer.merge()


def litdata_in_order(out: Path) -> Iterator[Any]:
    import litdata

    return (sample["jpg"] for sample in litdata.StreamingDataset(str(out), shuffle=False))


def write_hf(records: Iterable[Record], out: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    columns = {"key": datasets.Value("string"), "jpg": datasets.Value("binary")}
    features = datasets.Features(columns | {"captions": datasets.List(datasets.Value("string"))})
    rows = [{"key": key, "jpg": image, "captions": captions} for key, image, captions in records]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(out), max_shard_size="64MB")


def hf_by_row(out: Path) -> tuple[int, Callable[[int], Any]]:
    import datasets

    data = datasets.load_from_disk(str(out))
    return len(data), lambda row: data[row]["jpg"]


def hf_in_order(out: Path) -> Iterator[Any]:
    import datasets

    return (row["jpg"] for row in datasets.load_from_disk(str(out)))


def write_ffcv(records: Iterable[Record], out: Path) -> None:
    """FFCV takes pixels, and encodes them again."""
    import numpy as np
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter
    from PIL import Image

    images = [(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")),) for _, image, _ in records]
    field = RGBImageField(write_mode="jpg", jpeg_quality=90)
    DatasetWriter(str(out), {"image": field}, num_workers=1).from_indexed_dataset(images)


FORMATS = {
    "mvlm": Format(write_mvlm, mvlm_in_order, mvlm_by_row),
    "folder": Format(write_folder, folder_in_order, folder_by_row),
    "webdataset": Format(write_webdataset, webdataset_in_order, None),
    "MDS": Format(write_mds, mds_in_order, mds_by_row),
    "litdata": Format(write_litdata, litdata_in_order, None),
    "HF datasets": Format(write_hf, hf_in_order, hf_by_row),
    "FFCV": Format(write_ffcv, None, None),  # only its own decoder reads it
}
