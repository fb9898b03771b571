"""Shards of the task "foils": images with a true and a false sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mvlm.config import Config
from mvlm.data.dataset import CaptionTokenizer
from mvlm.data.schema import SCHEMAS, Shard, check_lengths, read_manifest
from mvlm.data.transforms import BadImage, eval_view, load_image
from mvlm.errors import UserError


class FoilDataset:
    """The first `limit` rows (0 = all) of a folder.

    Attributes:
        captions: the true and the false sentence of each row, one after the other.
        swapped: what the false sentence exchanges, for each row.

    Raises:
        UserError: the folder cannot be read, is of another task or has no rows.
    """

    def __init__(self, folder: str, tokenizer: Any, config: Config, limit: int = 0) -> None:
        manifest = read_manifest(folder)
        if manifest.task != "foils":
            raise UserError(
                f"{folder} holds rows of the task {manifest.task!r} and not of foils: make some with "
                "`python -m data_tools synth --task foils`."
            )
        check_lengths(folder, manifest.shards)
        self.fingerprint = manifest.fingerprint
        self.tokens, self.image_size = CaptionTokenizer(tokenizer, config.data.text_length), config.model.image_size
        self._where = [(Path(folder) / shard.file, row) for shard in manifest.shards for row in range(shard.rows)]
        self._where = self._where[: limit or None]
        if not self._where:
            raise UserError(f"{folder} holds no rows: make some with `python -m data_tools synth --task foils`.")
        self._tables = {Path(folder) / shard.file: _open(Path(folder), shard) for shard in manifest.shards}
        texts: dict[str, list[str]] = {"caption": [], "foil": [], "swapped": []}
        for table in self._tables.values():
            for name, column in texts.items():
                column += table.column(name).to_pylist()
        self.swapped = texts["swapped"][: len(self)]
        both = zip(texts["caption"], texts["foil"], strict=True)
        self.captions = [sentence for pair in both for sentence in pair][: 2 * len(self)]

    def __len__(self) -> int:
        """Rows, which is images."""
        return len(self._where)

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W], resized without a crop; raises `UserError` naming shard and row of a damaged one."""
        return torch.from_numpy(np.stack([self._view(row) for row in rows]))

    def texts(self, captions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and valid_BL bool of the sentences with these indices."""
        return self.tokens.batch([self.captions[index] for index in captions])

    def _view(self, row: int) -> np.ndarray:
        path, local = self._where[row]
        try:
            return eval_view(load_image(self._tables[path].column("image")[local].as_buffer()), self.image_size)
        except BadImage as error:
            raise UserError(
                f"{path} row {local}: the image cannot be decoded ({error}); make the shards again."
            ) from None


def _open(folder: Path, shard: Shard) -> pa.Table:
    path = folder / shard.file
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if not table.schema.equals(SCHEMAS["foils"]) or len(table) != shard.rows:
            raise ValueError("its columns or rows are not those of this version")
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): make the shards again.") from None
