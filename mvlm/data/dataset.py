"""Rows of a mixture as training samples, and as images and captions to evaluate on."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mvlm.batch import Batch
from mvlm.config import Config
from mvlm.data.collate import Sample, collate, pad
from mvlm.data.decoding import BadImage, Picture, open_picture
from mvlm.data.index import Mixture, Row
from mvlm.data.transforms import eval_view, train_view
from mvlm.errors import UserError
from mvlm.masking import Purpose, block_grid, generator, patch_mask, token_mask

_SIDES = re.compile(r"\b(left|right)(hand|most|wards?)?\b", re.IGNORECASE)


class CaptionTokenizer:
    """Captions to token ids, safe to call from several threads.

    It holds its own copy of the tokenizer with the truncation set once: the transformers wrapper sets it
    anew at each call, which fails when another thread is encoding.

    Attributes:
        length: tokens of a caption at most, special ones included.
        pad_id, mask_id: ids of these special tokens.
        special_ids, ordinary_ids: int64, the vocabulary in two parts.
    """

    def __init__(self, tokenizer: Any, length: int):
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UserError(
                f"The tokenizer {type(tokenizer).__name__} has no tokenizer.json form: "
                'set data.tokenizer to one that has, or to "auto".'
            )
        self._encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder.no_padding()
        self._encoder.enable_truncation(length)
        self.length = length
        self.pad_id = int(tokenizer.pad_token_id)
        self.mask_id = int(tokenizer.mask_token_id)
        self.special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
        known = np.array(sorted(set(tokenizer.get_vocab().values())), dtype=np.int64)
        self.ordinary_ids = np.setdiff1d(known, self.special_ids)

    def encode(self, caption: str) -> np.ndarray:
        """int64 [L], cut to `length`, with the special tokens that begin and end a sentence."""
        return np.array(self._encoder.encode(caption).ids, dtype=np.int64)

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """Where in the caption each token of `encode` stands, as (first, last + 1) character; special ones (0, 0)."""
        return self._encoder.encode(caption).offsets

    def special(self, text_L: np.ndarray) -> np.ndarray:
        """bool [L], True where a token is special."""
        return np.isin(text_L, self.special_ids)

    def batch(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and valid_BL bool, padded as in training."""
        return pad([self.encode(caption) for caption in captions], self.pad_id, self.length)


class PairDataset:
    """Training samples; each a function of (seed, position, row) alone.

    Args:
        mixture: the shards to train on.
        tokenizer: a fast transformers tokenizer with mask and pad tokens.
        grid: rows and columns of patches of the image encoder.

    Raises:
        UserError: the mask blocks do not tile the grid.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, config: Config, grid: tuple[int, int]):
        block_grid(grid, config.objectives.image_mask_block)
        self.mixture = mixture
        self.captions = CaptionTokenizer(tokenizer, config.data.text_length)
        self.config = config
        self.grid = grid

    def __len__(self) -> int:
        """Rows, which is samples an epoch."""
        return len(self.mixture)

    def sample(self, position: int, row: int) -> Sample:
        """Prepare `row` as it is seen at `position`, counted in samples from the run's start.

        Raises:
            UserError: the image cannot be decoded; names shard, row and key.
        """
        epoch = position // len(self)
        content = self.mixture.row(row)
        caption = self._choose(content.captions, epoch, row)
        with _naming(self.mixture, content, row):
            image_CHW, masked_image_CHW = self._views(open_picture(content.image), caption, epoch, row)
        text_L = self.captions.encode(caption)
        masked_text_L, target_L = self._hide_tokens(text_L, epoch, row)
        return Sample(
            image_CHW=image_CHW,
            masked_image_CHW=masked_image_CHW,
            patch_mask_N=self._hide_patches(epoch, row),
            text_L=text_L,
            masked_text_L=masked_text_L,
            target_L=target_L,
            position=position,
            image_id=row,
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.captions.pad_id, self.captions.length)

    def _rng(self, purpose: Purpose, epoch: int, row: int) -> np.random.Generator:
        # A row occurs once an epoch.
        return generator(self.config.run.seed, purpose, epoch, 0, row)

    def _choose(self, captions: list[str], epoch: int, row: int) -> str:
        match self.config.data.caption:
            case "draw":
                return captions[int(self._rng(Purpose.CAPTION, epoch, row).integers(len(captions)))]
            case "cycle":
                return captions[epoch % len(captions)]
            case "first":
                return captions[0]

    def _views(self, picture: Picture, caption: str, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        data = self.config.data
        flip = data.flip and not _SIDES.search(caption)

        def view(purpose: Purpose) -> np.ndarray:
            rng = self._rng(purpose, epoch, row)
            return train_view(picture, self.config.model.image_size, rng, data.crop_scale, flip, data.randaugment)

        whole = view(Purpose.VIEW)
        return whole, whole if data.shared_view else view(Purpose.MASKED_VIEW)

    def _hide_patches(self, epoch: int, row: int) -> np.ndarray:
        objectives = self.config.objectives
        return patch_mask(
            self._rng(Purpose.PATCHES, epoch, row),
            self.grid,
            objectives.image_mask_block,
            objectives.image_mask_ratio,
            objectives.image_mask_rounding,
        )

    def _hide_tokens(self, text_L: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        objectives = self.config.objectives
        return token_mask(
            self._rng(Purpose.TOKENS, epoch, row),
            text_L,
            self.captions.special(text_L),
            ratio=objectives.text_mask_ratio,
            minimum=objectives.text_mask_minimum,
            mask_share=objectives.text_mask_token,
            random_share=objectives.text_mask_random,
            mask_id=self.captions.mask_id,
            random_ids=self.captions.ordinary_ids,
        )


class EvalDataset:
    """The first `limit` rows (0 = all) as plain images and all their captions.

    Attributes:
        captions: every caption of every row, row after row.
        owner: int64 [len(captions)], the row of each.
        tokens: the `CaptionTokenizer`.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, config: Config, limit: int = 0):
        self.mixture = mixture
        self.tokens = CaptionTokenizer(tokenizer, config.data.text_length)
        self.image_size = config.model.image_size
        self.rows = min(limit, len(mixture)) if limit else len(mixture)
        captions = [mixture.captions(row) for row in range(self.rows)]
        self.captions = [caption for of_row in captions for caption in of_row]
        self.owner = np.repeat(np.arange(self.rows), [len(of_row) for of_row in captions])

    def __len__(self) -> int:
        """Images."""
        return self.rows

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W], resized without a crop.

        Raises:
            UserError: an image cannot be decoded; names shard, row and key.
        """
        return torch.from_numpy(np.stack([self._image(row) for row in rows]))

    def _image(self, row: int) -> np.ndarray:
        content = self.mixture.row(row)
        with _naming(self.mixture, content, row):
            return eval_view(open_picture(content.image), self.image_size)

    def texts(self, captions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and valid_BL bool of the captions with these indices."""
        return self.tokens.batch([self.captions[index] for index in captions])


@contextmanager
def _naming(mixture: Mixture, content: Row, row: int) -> Iterator[None]:
    try:
        yield
    except BadImage as error:
        where = f"{mixture.where(row)} (key {content.key!r})"
        if zlib.crc32(content.image) != content.crc32:
            raise UserError(
                f"{where}: the image is not the one that was written (its checksum differs): the shard is damaged; "
                "copy or shard it again."
            ) from error
        raise UserError(
            f"{where}: the image cannot be decoded ({error}); shard the corpus again with `python -m data_tools "
            "shard`, which sets such images aside."
        ) from error
