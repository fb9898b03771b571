"""An index made: shards read row by row, their images embedded as evaluation does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mvlm.data.samples.evaluation import EvalImages
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate import shares
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded
from mvlm.search.folder import INDEX, TABLE, TABLE_SCHEMA, Contents, Indexed, VectorWriter, hash_of, new_index


def build_index(loaded: Loaded[MaskVLM], folders: Sequence[str], out: Path, device: torch.device) -> int:
    """Index the images of shard folders, a batch at a time; returns how many.

    An index that stands at `out` is replaced when the new one is whole.

    Raises:
        UserError: shards cannot be read, an image cannot be decoded (names shard, row and key), or `out` cannot be
            written.
    """
    config, model = loaded.config, loaded.model
    mixture = Mixture([_lasting(folder) for folder in folders], cache=Cache(config.data.cache, config.data.cache_gb))
    dataset = EvalImages(mixture, len(mixture), config.model.image_size)
    with new_index(out) as folder:
        vectors = VectorWriter(folder, config.model.contrastive_width)
        with pa.OSFile(str(folder / TABLE), "wb") as file, pa.ipc.new_file(file, TABLE_SCHEMA) as table:
            for rows, image_BCHW in _read_ahead(dataset, config.eval.batch):
                with shares.inference(model):
                    feature_BE = model.project_image(model.encode_image(image_BCHW.to(device)))
                vectors.add(feature_BE.float().cpu().numpy())
                table.write_batch(_describe(mixture, rows))
        vectors.save()
        contents = Contents(
            weights=loaded.fingerprint,
            step=loaded.step,
            width=vectors.width,
            rows=len(mixture),
            shards=tuple(Indexed(str(c.folder), c.manifest.fingerprint) for c in mixture.corpora),
            table=hash_of(folder / TABLE),
            vectors=tuple(vectors.files),
        )
        (folder / INDEX).write_text(contents.to_json(), encoding="utf-8")
    return len(mixture)


def _lasting(folder: str) -> str:
    """A name that means the same from every working directory."""
    return folder if "://" in folder else str(Path(folder).resolve())


def _read_ahead(dataset: EvalImages, batch: int) -> Iterator[tuple[range, Tensor]]:
    """The images in order with their rows, the next batch decoded meanwhile; shows how far it is."""
    count = len(dataset)
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    console = Console(stderr=True)
    columns = (TextColumn("index"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ThreadPoolExecutor(1) as reader, Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, following = bar.add_task("", total=count), reader.submit(dataset.images, batches[0])
        for number, rows in enumerate(batches):
            image_BCHW = following.result()
            if number + 1 < len(batches):
                following = reader.submit(dataset.images, batches[number + 1])
            yield rows, image_BCHW
            bar.advance(task, len(rows))


def _describe(mixture: Mixture, rows: range) -> pa.RecordBatch:
    shards, locals_, keys, captions = [], [], [], []
    for row in rows:
        content = mixture.row(row)
        shard, local = mixture.position(row)
        shards.append(shard)
        locals_.append(local)
        keys.append(content.key)
        captions.append(content.captions[0])
    return pa.record_batch([shards, np.array(locals_), keys, captions], schema=TABLE_SCHEMA)
