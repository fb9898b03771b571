"""What a trained model says of every row of a corpus, as a table beside each shard that `data.where` reads.

A shard is scored alone and in batches of its own rows, so that the numbers do not depend on who scores the others.
Tables of finished shards wait in `.scores` until all are there; then they are put in place and named in the manifest.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mvlm.data.images.decode import open_picture
from mvlm.data.images.encoded import BadImage
from mvlm.data.images.transforms import eval_view
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.columns import Row
from mvlm.data.shards.corpus import Mixture, UnreadableRow
from mvlm.data.shards.schema import MANIFEST, Shards, read_manifest, table_file
from mvlm.data.shards.tables import put_table, write_table
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded
from mvlm.runtime.storage import publish, write_durably

SCORES = "scores"
STAGED = ".scores"

COLUMNS = ("itc_similarity", "itm_probability", "caption_words")
"""Each the mean over the captions of a row; null where the row is damaged or was taken down."""

MADE_BY = b"mvlm scores"
"""Of a table's own metadata: the weights that gave the scores, and the shard."""


class Scorer:
    """Scores rows with a trained model.

    Args:
        loaded: the model.
        batch: rows in a forward pass.
    """

    def __init__(self, loaded: Loaded[MaskVLM], batch: int, device: torch.device) -> None:
        self.model, self.fingerprint, self._device, self._batch = loaded.model, loaded.fingerprint, device, batch
        self._size, self._has_itm = loaded.config.model.image_size, bool(loaded.config.objectives.itm)
        self._tokens = BatchTokenizer(load_tokenizer(str(loaded.tokenizer_folder)), loaded.config.data.text_length)

    def table(self, mixture: Mixture, first: int, rows: int, on_rows: Callable[[int], object]) -> pa.Table:
        """The scores of that many rows of a mixture, from one on."""
        found: dict[str, list[Any]] = {name: [None] * rows for name in COLUMNS}
        for start in range(0, rows, self._batch):
            numbers = range(start, min(start + self._batch, rows))
            good = [(number, *pair) for number in numbers if (pair := self._read(mixture, first + number))]
            if good:
                scored = self.scores(np.stack([image for *_, image in good]), [row.captions for _, row, _ in good])
                for name, values in scored.items():
                    for (number, *_), value in zip(good, values, strict=True):
                        found[name][number] = value
            on_rows(len(numbers))
        return pa.table({name: pa.array(values, pa.float32()) for name, values in found.items()})

    def scores(self, image_BCHW: np.ndarray, captions: Sequence[Sequence[str]]) -> dict[str, list[float | None]]:
        """The values of `COLUMNS` of rows with these images, uint8, and captions."""
        owner_M = np.repeat(np.arange(len(captions)), [len(of_row) for of_row in captions])
        texts, size = [text for of_row in captions for text in of_row], self._batch
        similarity, odds = [], []
        with shares.inference(self.model):
            image_BSD = self.model.encode_image(torch.from_numpy(image_BCHW).to(self._device))
            image_BE = self.model.project_image(image_BSD)
            for at in range(0, len(texts), size):
                owner_T = torch.from_numpy(owner_M[at : at + size]).to(self._device)
                text_TL, valid_TL = (each.to(self._device) for each in self._tokens.batch(texts[at : at + size]))
                text_TLD = self.model.encode_text(text_TL, valid_TL)
                similarity.append((image_BE[owner_T] * self.model.project_text(text_TLD)).sum(1))
                if self._has_itm:
                    odds.append(self.model.match(image_BSD[owner_T], text_TLD, valid_TL).float().softmax(1)[:, 1])
        words_M = np.array([len(text.split()) for text in texts], np.float64)
        means: dict[str, list[float | None]] = {
            "itc_similarity": _means(torch.cat(similarity).double().cpu().numpy(), owner_M),
            "caption_words": _means(words_M, owner_M),
        }
        means["itm_probability"] = [None] * len(captions)
        if odds:
            means["itm_probability"] = _means(torch.cat(odds).double().cpu().numpy(), owner_M)
        return means

    def _read(self, mixture: Mixture, row: int) -> tuple[Row, np.ndarray] | None:
        """A row with its image as evaluation sees it, uint8; None where it cannot be used."""
        if mixture.is_taken_down(row):
            return None
        try:
            content = mixture.row(row)
            return content, eval_view(open_picture(content.encoded[0].checked()), self._size)
        except (UnreadableRow, BadImage):
            return None


def score_part(
    scorer: Scorer, folder: Path, part: int = 0, parts: int = 1, on_rows: Callable[[int], object] = lambda rows: None
) -> tuple[int, int]:
    """Score every `parts`-th shard of a folder from number `part` on, but those that these weights have scored.

    Returns:
        Shards that have no scores of these weights yet, which other parts are still to give, and all shards.

    Raises:
        UserError: the corpus is missing or damaged, or has scores of other weights.
    """
    mixture, manifest = Mixture([folder], trains=True), read_manifest(folder)
    (folder / STAGED).mkdir(exist_ok=True)
    for number in range(part, len(manifest.shards), parts):
        shard = manifest.shards[number]
        if not _is_scored(folder, shard.file, shard.hash, scorer):
            table = scorer.table(mixture, mixture.corpora[0].shard_starts[number], shard.rows, on_rows)
            made_by = f"{scorer.fingerprint} {shard.hash}".encode()
            path = folder / STAGED / table_file(shard.file, SCORES)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            write_table(partial, table.replace_schema_metadata({MADE_BY: made_by}))
            publish(partial, path)
    return _put_in_place(scorer, folder), len(manifest.shards)


def _is_scored(folder: Path, file: str, shard: str, scorer: Scorer) -> bool:
    for place in (folder / STAGED, folder):
        try:
            metadata = pq.read_schema(place / table_file(file, SCORES)).metadata or {}
        except (OSError, pa.ArrowException):
            continue
        if metadata.get(MADE_BY) == f"{scorer.fingerprint} {shard}".encode():
            return True
    return False


def _put_in_place(scorer: Scorer, folder: Path) -> int:
    """Name the tables in the manifest if all are there; how many are not yet."""
    lock = os.open(folder / STAGED, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = read_manifest(folder)
        missing = sum(not _is_scored(folder, shard.file, shard.hash, scorer) for shard in manifest.shards)
        if not missing:
            shards = [put_table(folder, shard, SCORES, folder / STAGED) for shard in manifest.shards]
            write_durably(folder / MANIFEST, replace(manifest, shards=Shards(shards)).to_json())
        return missing
    finally:
        os.close(lock)


def parse_part(text: str) -> tuple[int, int]:
    """`i/n`, i from 1 to n as in `data_tools shard`, as a number from 0 on and n."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part {text} is no part: give i/n with i from 1 to n, such as 1/8.")
    return int(number) - 1, int(count)


def _means(value_M: np.ndarray, owner_M: np.ndarray) -> list[float | None]:
    sums, counts = np.bincount(owner_M, value_M), np.bincount(owner_M)
    return list((sums / counts).tolist())
