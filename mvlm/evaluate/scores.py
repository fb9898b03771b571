"""What a trained model says about every row of a corpus: the columns that `data.where` and clusters read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE
from mvlm.data.images.decode import open_picture
from mvlm.data.images.encoded import BadImage
from mvlm.data.images.transforms import eval_view
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.shards.columns import Row
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.data.shards.mixture import Mixture
from mvlm.data.shards.tables import EMBEDDINGS
from mvlm.evaluate import shares
from mvlm.evaluate.language import language_finder
from mvlm.evaluate.masked_words import mask_tokens
from mvlm.evaluate.reconstruction import patch_masks, pixel_target
from mvlm.evaluate.settings import reading_of
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import Loaded

SCORES = "scores"
NUMBERS = ("itc_similarity", "itm_probability", "text_loss", "image_loss", "caption_words")
"""Columns, each the mean over the captions of a row."""
LANGUAGE, EMBEDDING = "language", "embedding"


@dataclass(frozen=True)
class _Good:
    """A row that can be scored."""

    number: int  # in its shard
    row: Row
    image_CHW: np.ndarray


class Scorer:
    """Scores rows with a trained model.

    Args:
        loaded: the model.
        batch: rows in a forward pass.

    Attributes:
        names: of the tables that `tables` gives.
        made_by: what they depend on besides the shard.
        finds_language: whether there is a column `language`.
    """

    names = (SCORES, EMBEDDINGS)

    def __init__(self, loaded: Loaded[MaskVLM], batch: int, device: torch.device) -> None:
        self.model, self._device, self._batch = loaded.model, device, batch
        tokenizer, length, self._size = reading_of(loaded)
        self._tokens, self._objectives = BatchTokenizer(tokenizer, length), loaded.blueprint.objectives
        self._width = loaded.blueprint.model.contrastive_width
        self._language = language_finder()
        self.finds_language = self._language is not None
        columns = [*NUMBERS, *([LANGUAGE] if self.finds_language else []), EMBEDDING]
        self.made_by = f"{loaded.fingerprint} {' '.join(columns)}"

    def tables(self, mixture: Mixture, first: int, rows: int, on_rows: Callable[[int], object]) -> dict[str, pa.Table]:
        """The tables of a shard, which is the mixture's `rows` rows from `first` on.

        Rows that are damaged or were taken down are null in all columns.
        """
        found: dict[str, list[Any]] = {name: [None] * rows for name in (*NUMBERS, LANGUAGE, EMBEDDING)}
        for start in range(0, rows, self._batch):
            numbers = range(start, min(start + self._batch, rows))
            good = [row for number in numbers if (row := self._read(mixture, first, number))]
            for name, values in (self._scores(good) if good else {}).items():
                for row, value in zip(good, values, strict=True):
                    found[name][row.number] = value
            on_rows(len(numbers))
        scores = {name: pa.array(found[name], pa.float32()) for name in NUMBERS}
        if self.finds_language:
            scores[LANGUAGE] = pa.array(found[LANGUAGE], pa.string())
        embeddings = pa.array(found[EMBEDDING], pa.list_(pa.float16(), self._width))
        return {SCORES: pa.table(scores), EMBEDDINGS: pa.table({EMBEDDING: embeddings})}

    def _scores(self, good: Sequence[_Good]) -> dict[str, Sequence[Any]]:
        image_BCHW = torch.from_numpy(np.stack([row.image_CHW for row in good])).to(self._device)
        captions = [row.row.captions for row in good]
        with shares.inference(self.model):
            image_BSD = self.model.encode_image(image_BCHW)
            image_BE = self.model.project_image(image_BSD)
            masked = self._masked_images(image_BCHW, good)
            of_captions = self._of_captions(image_BSD, image_BE, masked, good)
        owner_T = np.repeat(np.arange(len(good)), [len(of_row) for of_row in captions])
        found: dict[str, Sequence[Any]] = {name: _means(of, owner_T) for name, of in of_captions.items()}
        found[EMBEDDING] = list(image_BE.half().cpu().numpy())
        if self._language:
            found[LANGUAGE] = [self._language(of_row) for of_row in captions]
        return found

    def _masked_images(self, image_BCHW: Tensor, good: Sequence[_Good]) -> tuple[Tensor, Tensor, Tensor] | None:
        """masked_BSD, the encodings of images whose patches are masked, patch_mask_BN and the target target_BNQ."""
        if not self._objectives.image:
            return None
        patch_mask_BN = patch_masks(self.model, np.array([row.number for row in good])).to(self._device)
        target_BNQ = pixel_target(self.model, image_BCHW)
        return self.model.encode_image(image_BCHW, patch_mask_BN), patch_mask_BN, target_BNQ

    def _of_captions(
        self,
        image_BSD: Tensor,
        image_BE: Tensor,
        masked: tuple[Tensor, Tensor, Tensor] | None,
        good: Sequence[_Good],
    ) -> dict[str, np.ndarray]:
        """The columns `NUMBERS` of each caption, row after row; those that the model was not trained for are absent."""
        places = [(owner, number) for owner, row in enumerate(good) for number in range(len(row.row.captions))]
        found: dict[str, list[Tensor]] = {}
        for at in range(0, len(places), self._batch):
            part = places[at : at + self._batch]
            owner_T = torch.tensor([owner for owner, _ in part], device=self._device)
            texts = [good[owner].row.captions[number] for owner, number in part]
            text_TL, valid_TL = (each.to(self._device) for each in self._tokens.batch(texts))
            text_TLD = self.model.encode_text(text_TL, valid_TL)
            scores = {"itc_similarity": (image_BE[owner_T] * self.model.project_text(text_TLD)).sum(1)}
            if self._objectives.itm:
                logits_T2 = self.model.match(image_BSD[owner_T], text_TLD, valid_TL)
                scores["itm_probability"] = logits_T2.float().softmax(1)[:, 1]
            if self._objectives.text:
                rows = [(good[owner].number, number) for owner, number in part]
                scores["text_loss"] = self._text_loss(text_TL, valid_TL, image_BSD[owner_T], rows)
            if masked:
                masked_TSD, patch_mask_TN, target_TNQ = (each[owner_T] for each in masked)
                scores["image_loss"] = self._image_loss(masked_TSD, patch_mask_TN, target_TNQ, text_TLD, valid_TL)
            scores["caption_words"] = torch.tensor([len(text.split()) for text in texts])
            for name, values in scores.items():
                found.setdefault(name, []).append(values.double().cpu())
        return {name: torch.cat(values).numpy() for name, values in found.items()}

    def _text_loss(
        self, text_TL: Tensor, valid_TL: Tensor, image_TSD: Tensor, rows: Sequence[tuple[int, int]]
    ) -> Tensor:
        """The mean cross-entropy of each caption's masked tokens, given its whole image; NaN if there are none.

        Args:
            rows: for each caption, its row in the shard and its number in the row, from which its mask is drawn.
        """
        masked = [
            mask_tokens(self._tokens, self._objectives, self.model.seed, text_L, row, caption)
            for text_L, (row, caption) in zip(text_TL.cpu().numpy(), rows, strict=True)
        ]
        masked_TL, target_TL = (torch.from_numpy(np.stack(each)).to(self._device) for each in zip(*masked, strict=True))
        text_TLD = self.model.encode_text(masked_TL, valid_TL)
        fused_TLD = self.model.fuse_text(text_TLD, image_TSD, valid_TL)
        is_masked_TL = target_TL != IGNORE
        loss_M = F.cross_entropy(
            self.model.reconstruct_text(fused_TLD[is_masked_TL]).float(), target_TL[is_masked_TL], reduction="none"
        )
        loss_TL = torch.zeros(target_TL.shape, device=self._device).masked_scatter(is_masked_TL, loss_M)
        return loss_TL.sum(1) / is_masked_TL.sum(1)

    def _image_loss(
        self, masked_TSD: Tensor, patch_mask_TN: Tensor, target_TNQ: Tensor, text_TLD: Tensor, valid_TL: Tensor
    ) -> Tensor:
        """The mean absolute error of each image's masked values, given the whole caption."""
        fused_TSD = self.model.fuse_image(masked_TSD, text_TLD, valid_TL)
        pixels_TNQ = self.model.reconstruct_image(fused_TSD, text_TLD, valid_TL, patch_mask_TN).float()
        error_TN = (pixels_TNQ - target_TNQ).abs().mean(-1) * patch_mask_TN
        return error_TN.sum(1) / patch_mask_TN.sum(1)

    def _read(self, mixture: Mixture, first: int, number: int) -> _Good | None:
        """A row with its image as evaluation sees it, uint8; None if it cannot be used."""
        if mixture.is_taken_down(first + number):
            return None
        try:
            row = mixture.row(first + number)
            return _Good(number, row, eval_view(open_picture(row.encoded[0].checked()), self._size))
        except (UnreadableRow, BadImage):
            return None


def _means(value_T: np.ndarray, owner_T: np.ndarray) -> list[float | None]:
    """The mean over each row's captions that have a value; None if none has."""
    known = ~np.isnan(value_T)
    sums = np.bincount(owner_T, np.where(known, value_T, 0))
    counts = np.bincount(owner_T, known)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
