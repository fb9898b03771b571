"""Building an index: any number of ranks read shards row by row, and embed their images as evaluation does.

Each rank embeds whole batches, and writes features and rows beside the index; then each builds some of the vector
files. Whatever the number of ranks, batches have the same rows and one thread builds each file's graph, so that the
index is the same to the last byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mvlm.data.samples.evaluation import EvalImages
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.columns import Row
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate import shares
from mvlm.evaluate.settings import reading_of
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded
from mvlm.runtime import dist
from mvlm.search import folder as layout
from mvlm.search.folder import INDEX, TABLE, TABLE_SCHEMA, Contents, Indexed, VectorFile, hash_of, new_index

SHARES = "shares"  # a folder inside a new index until it is complete
AT_ONCE = 8  # vector files that a rank builds concurrently, each in one thread and 0.3 GB


def build_index(
    loaded: Loaded[MaskVLM], folders: Sequence[str], out: Path, device: torch.device, captions: bool = False
) -> int:
    """Index the images of shard folders, a batch at a time; returns how many. To be called on all ranks.

    An existing index at `out`, which all ranks must see, is replaced when the new one is complete.

    Args:
        captions: make a row's feature the normalised sum of its image's and the mean of its captions', so that a
            sentence first finds images whose captions match.

    Raises:
        UserError: shards cannot be read, an image cannot be decoded (names shard, row and key), or `out` cannot be
            written.
    """
    data, width = loaded.data, loaded.blueprint.model.contrastive_width
    mixture = Mixture([_lasting(folder) for folder in folders], cache=Cache(data.cache, data.cache_gb))
    with new_index(out) as folder:
        work = IndexWork(folder, mixture, loaded.eval.batch, width, dist.rank(), dist.world(), captions)
        dist.on_all(layout.mistakes_of(out, lambda: work.embed(loaded, device)))
        files = dist.on_all(layout.mistakes_of(out, work.build))
        vectors = sorted((file for of_rank in files for file in of_rank), key=lambda file: file.file)
        dist.as_rank_0(layout.mistakes_of(out, lambda: work.complete(loaded, vectors)))
    return len(mixture)


class IndexWork:
    """A rank's part in a new index; all ranks must finish one method before any begins the next.

    Args:
        folder: the new index.
        batch: images per forward pass.
        width: of a feature.
        captions: whether to add features of captions.
    """

    def __init__(
        self, folder: Path, mixture: Mixture, batch: int, width: int, rank: int, world: int, captions: bool
    ) -> None:
        self._folder, self._mixture, self._width, self._captions = folder, mixture, width, captions
        self._batch, self._rank, self._world = batch, rank, world
        batches = -(-len(mixture) // batch)
        self._share = -(-batches // world) * batch  # rows per rank; the last ranks may have fewer, or none

    def embed(self, loaded: Loaded[MaskVLM], device: torch.device) -> None:
        """Write the features and the rows of this rank's share, in order."""
        first, end = self._rank * self._share, min((self._rank + 1) * self._share, len(self._mixture))
        batches = [range(start, min(start + self._batch, end)) for start in range(first, end, self._batch)]
        dataset = EvalImages(self._mixture, len(self._mixture), loaded.blueprint.model.image_size)
        tokens = BatchTokenizer(*reading_of(loaded)[:2]) if self._captions else None
        features, rows = self._files(self._rank)
        features.parent.mkdir(exist_ok=True)
        with (
            open(features, "wb") as raw,
            pa.OSFile(str(rows), "wb") as file,
            pa.ipc.new_file(file, TABLE_SCHEMA) as table,
        ):
            for numbers, image_BCHW in _read_ahead(dataset, batches, shows=self._rank == 0):
                content_B = [self._mixture.row(number) for number in numbers]
                with shares.inference(loaded.model):
                    feature_BE = loaded.model.project_image(loaded.model.encode_image(image_BCHW.to(device)))
                    if tokens:
                        read_BE = _caption_features(loaded.model, [row.captions for row in content_B], tokens, device)
                        feature_BE = F.normalize(feature_BE + read_BE, dim=-1)
                raw.write(feature_BE.float().cpu().numpy().tobytes())
                table.write_batch(_describe(self._mixture, numbers, content_B))

    def build(self) -> list[VectorFile]:
        """Write this rank's vector files, whose features any rank may have made."""
        numbers = range(self._rank, -(-len(self._mixture) // layout.PART), self._world)
        with ThreadPoolExecutor(min(AT_ONCE, len(os.sched_getaffinity(0)))) as threads:
            return list(threads.map(self._build, numbers))

    def complete(self, loaded: Loaded[MaskVLM], vectors: Sequence[VectorFile]) -> None:
        """On rank 0: write the table of all rows, and the description of the index."""
        with pa.OSFile(str(self._folder / TABLE), "wb") as file, pa.ipc.new_file(file, TABLE_SCHEMA) as table:
            for rank in range(self._world):
                part = pa.ipc.open_file(pa.memory_map(str(self._files(rank)[1])))
                for number in range(part.num_record_batches):
                    table.write_batch(part.get_batch(number))
        contents = Contents(
            weights=loaded.fingerprint,
            step=loaded.step,
            width=self._width,
            rows=len(self._mixture),
            shards=tuple(Indexed(str(c.folder), c.manifest.fingerprint) for c in self._mixture.corpora),
            table=hash_of(self._folder / TABLE),
            vectors=tuple(vectors),
        )
        (self._folder / INDEX).write_text(contents.to_json(), encoding="utf-8")
        shutil.rmtree(self._folder / SHARES)

    def _build(self, number: int) -> VectorFile:
        first, end = number * layout.PART, min((number + 1) * layout.PART, len(self._mixture))
        return layout.write_vectors(self._folder, number, self._features(first, end), self._width)

    def _features(self, first: int, end: int) -> Iterator[np.ndarray]:
        """The features of rows `first` to `end`, as the ranks have written them."""
        while first < end:
            rank, row = divmod(first, self._share)
            count = min(end - first, self._share - row)
            begin = 4 * row * self._width
            raw = np.memmap(self._files(rank)[0], np.float32, "r", begin, (count, self._width))
            yield raw
            first += count

    def _files(self, rank: int) -> tuple[Path, Path]:
        folder = self._folder / SHARES
        return folder / f"features-{rank:05d}.f32", folder / f"rows-{rank:05d}.arrow"


def _caption_features(
    model: MaskVLM, captions_B: Sequence[Sequence[str]], tokens: BatchTokenizer, device: torch.device
) -> Tensor:
    """The mean feature of each image's captions -> BE, from batches of as many captions as images."""
    captions_C, batch = [caption for captions in captions_B for caption in captions], len(captions_B)
    read = []
    for first in range(0, len(captions_C), batch):
        text_BL, valid_BL = (tensor.to(device) for tensor in tokens.batch(captions_C[first : first + batch]))
        read.append(model.project_text(model.encode_text(text_BL, valid_BL)))
    return torch.stack([part_CE.mean(0) for part_CE in torch.cat(read).split([len(each) for each in captions_B])])


def _lasting(folder: str) -> str:
    """A path that is valid from every working directory."""
    return folder if "://" in folder else str(Path(folder).resolve())


def _read_ahead(dataset: EvalImages, batches: Sequence[range], shows: bool) -> Iterator[tuple[range, Tensor]]:
    """The images of batches with their rows; a thread decodes the next batch meanwhile.

    Args:
        shows: whether to show a progress bar.
    """
    console = Console(stderr=True)
    columns = (TextColumn("index"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shows and console.is_terminal)
    with ThreadPoolExecutor(1) as reader, Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task("", total=sum(map(len, batches)))
        decoded = [reader.submit(dataset.images, rows) for rows in batches[:1]]
        for number, rows in enumerate(batches):
            image_BCHW = decoded.pop().result()
            decoded += [reader.submit(dataset.images, rows) for rows in batches[number + 1 : number + 2]]
            yield rows, image_BCHW
            bar.advance(task, len(rows))


def _describe(mixture: Mixture, rows: range, content_B: Sequence[Row]) -> pa.RecordBatch:
    shards, locals_ = zip(*map(mixture.position, rows), strict=True)
    keys, captions = [row.key for row in content_B], [row.captions[0] for row in content_B]
    return pa.record_batch([shards, np.array(locals_), keys, captions], schema=TABLE_SCHEMA)
