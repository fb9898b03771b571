"""A trained model in Python: vectors, similarities, matches, reconstructions, masked words and search."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvlm.api.images import AnyImage, as_mask, listed, stacked
from mvlm.api.texts import Texts, listed_texts, require_text
from mvlm.config.places import as_paths, require_each_once
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.spelling import spelled
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.evaluate.examples import ImageExample, image_examples
from mvlm.evaluate.reconstruction import patch_masks
from mvlm.evaluate.untrained import untrained
from mvlm.model.maskvlm import MaskVLM
from mvlm.predict.prediction import pair_up
from mvlm.predict.words import MASK, blank_image, check_masks, guess_words
from mvlm.pretrained.runs import Loaded
from mvlm.runtime import dist
from mvlm.runtime.arguments import path_of, whole
from mvlm.search.build import build_index
from mvlm.search.find import ImageIndex, SearchHit, find_by_image, find_by_sentence

T = TypeVar("T")


class Features(NamedTuple):
    """Contrastive features, fp32 and of unit length, so that their inner products are cosine similarities."""

    images: Tensor | None  # NE
    texts: Tensor | None  # ME


@dataclass(frozen=True)
class Filling:
    """A sentence with its masked words filled in.

    Attributes:
        text: the sentence with the likeliest word in the place of each [MASK].
        guesses: for each [MASK], the likeliest words, best first, with their probabilities.
    """

    text: str
    guesses: list[list[tuple[str, float]]]


class TrainedModel:
    """A trained MaskVLM, made by `mvlm.load`.

    Images may be paths, Pillow images, uint8 arrays HWC or uint8 tensors CHW, one or a list; texts, a string or a list.

    Attributes:
        network: the `torch.nn.Module`, in evaluation mode.
        step: the number of updates it was trained for; None for an exported model.
    """

    def __init__(
        self,
        network: MaskVLM,
        tokenizer: PreTrainedTokenizerBase,
        text_length: int,
        image_size: int,
        loaded: Loaded[MaskVLM] | None = None,
    ) -> None:
        self.network = network.eval()
        self.step = loaded.step if loaded else None
        self._tokenizer, self._tokens = tokenizer, BatchTokenizer(tokenizer, text_length)
        self._image_size, self._loaded = image_size, loaded
        self._index: ImageIndex | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_index": None}  # a copy opens the index, which is mapped from its files, again

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TrainedModel:
        """Move the model to a device, or to another dtype such as `torch.bfloat16`; returns the same model."""
        self.network.to(device=dist.device_named(device) if device else None, dtype=dtype)
        return self

    def encode(
        self,
        images: AnyImage | Iterable[AnyImage] | None = None,
        texts: Texts | None = None,
        batch: int = 64,
    ) -> Features:
        """The contrastive features of images (NE) and texts (ME), on the model's device; None for those not given.

        Args:
            batch: items per forward pass.

        Raises:
            UserError: something is not an image or a text, or `batch` is below 1; the message names it.
        """
        with shares.inference(self.network):
            return Features(
                None if images is None else self._image_features(listed(images), batch),
                None if texts is None else self._text_features(listed_texts(texts, self._tokens), batch),
            )

    def similarity(self, images: AnyImage | Iterable[AnyImage], texts: Texts, batch: int = 64) -> Tensor:
        """The cosine similarity of every image with every text, NM, by ITC. Raises as `encode`."""
        with shares.inference(self.network):
            image_NE = self._image_features(listed(images), batch)
            return image_NE @ self._text_features(listed_texts(texts, self._tokens), batch).T

    def match(self, images: AnyImage | Iterable[AnyImage], texts: Texts, batch: int = 64) -> Tensor:
        """ITM's probability that image i and text i belong together, N; a single image or text is paired with all.

        ITM reads both together, which is more accurate than `similarity`, and slower.

        Raises:
            UserError: there are more images than texts, or fewer, and not one of either; or as `encode`.
        """
        self._warn_untrained("itm")
        pairs = list(zip(*pair_up(listed(images), listed_texts(texts, self._tokens)), strict=True))
        found = []
        with shares.inference(self.network):
            for some in _batches(pairs, batch):
                image_BSD = self.network.encode_image(self._pixels([image for image, _ in some]))
                text_BL, valid_BL = self._text([text for _, text in some])
                text_BLD = self.network.encode_text(text_BL, valid_BL)
                found.append(self.network.match(image_BSD, text_BLD, valid_BL).float().softmax(-1)[:, 1])
        return torch.cat(found)

    def reconstruct(
        self,
        images: AnyImage | Iterable[AnyImage],
        texts: Texts,
        masked: np.ndarray | Tensor | None = None,
    ) -> list[ImageExample]:
        """Each image with masked patches reconstructed, with its text and without: pictures to look at, and their L1.

        Args:
            masked: bool [N, patches], True = masked, patches row by row; None masks as in training.

        Raises:
            UserError: images and texts cannot be paired, or the mask does not fit, masks nothing or everything; or as
                `encode`.
        """
        self._warn_untrained("image")
        shown, captions = pair_up(listed(images), listed_texts(texts, self._tokens))
        count, image_BCHW = len(captions), self._pixels(shown)
        grid = self.network.grid
        mask_BN = patch_masks(self.network, np.arange(count)) if masked is None else as_mask(masked, count, grid)
        with shares.inference(self.network):
            return image_examples(self.network, captions, self._tokens, image_BCHW, mask_BN.to(self.device))

    def fill(self, text: str, image: AnyImage | None = None, top: int = 5) -> Filling:
        """The words for each [MASK] of a sentence: `model.fill("a [MASK] bus", "bus.jpg")`.

        Args:
            image: what the sentence is about; None = fill in from the sentence alone.
            top: how many words to give for each [MASK].

        Raises:
            UserError: no word is masked, one is beyond the tokens that the model reads, or `top` is below 1; or as
                `encode`.
        """
        text, top = require_text(text), whole("top", top)
        self._warn_untrained("text")
        size = self._image_size
        shown_1CHW = blank_image(self.network, torch.zeros(1, 3, size, size, dtype=torch.uint8))
        if image is not None:
            shown_1CHW = stacked([image], size)
        read_as = listed_texts(text.replace(MASK, self._tokenizer.mask_token), self._tokens)
        text_1L, valid_1L = self._text(read_as)
        masked_1L = text_1L == self._tokens.mask_id
        check_masks(text, int(masked_1L.sum()), self._tokens.length)
        images = {"given": shown_1CHW.to(self.device)}
        found = guess_words(self.network, text_1L, valid_1L, masked_1L, images, top)["given"]
        guesses = [[(spelled(self._tokenizer, [token]), odds) for token, odds in best] for best in found]
        for best in guesses:
            text = text.replace(MASK, best[0][0], 1)
        return Filling(text, guesses)

    def index(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        captions: bool = False,
    ) -> int:
        """Embed the images of shards for `search`, as `mvlm index` does; returns their number.

        Args:
            out: the folder to write; an existing index is replaced once the new one is complete.
            captions: give the shards' own captions as much weight as the images.

        Raises:
            UserError: the shards cannot be used, or the index cannot be written; or as `search`.
        """
        folders = as_paths(shards)
        require_each_once(folders)
        return build_index(self._run(out), folders, path_of("out", out), self.device, captions)

    def search(self, index: str | os.PathLike[str], query: AnyImage, top: int = 5, rerank: int = 32) -> list[SearchHit]:
        """The images of an index, made by `mvlm index`, that fit a sentence best, or are most similar to an image.

        Args:
            query: a sentence, or an image; a string is a sentence, so give an image file as a `pathlib.Path`.
            rerank: how many of the first results for a sentence ITM re-ranks.

        Raises:
            UserError: `top` is below 1 or `rerank` below 0, the index is damaged or was made with other weights, or its
                shards were moved; or as `encode`.
        """
        loaded, top, rerank = self._run(index), whole("top", top), whole("rerank", rerank, least=0)
        folder = path_of("index", index)
        if self._index is None or not self._index.stands_at(folder):
            self._index = ImageIndex(folder, loaded)
        if isinstance(query, str):
            listed_texts(query, self._tokens)
            return find_by_sentence(self._index, loaded, query, top, rerank, self.device)
        return find_by_image(self._index, loaded, self._pixels([query]), top, self.device)

    def _run(self, index: str | os.PathLike[str]) -> Loaded[MaskVLM]:
        if self._loaded is None:
            raise UserError(f"Only the run that made {index} can search it: load that run folder or checkpoint.")
        return self._loaded

    def _warn_untrained(self, objective: Literal["itm", "image", "text"]) -> None:
        if sentence := untrained(self.network, objective):
            warnings.warn(sentence, stacklevel=3)

    def _image_features(self, images: list[AnyImage], batch: int) -> Tensor:
        encode, project = self.network.encode_image, self.network.project_image
        return torch.cat([project(encode(self._pixels(some))) for some in _batches(images, batch)])

    def _text_features(self, texts: list[str], batch: int) -> Tensor:
        encode, project = self.network.encode_text, self.network.project_text
        return torch.cat([project(encode(*self._text(some))) for some in _batches(texts, batch)])

    def _pixels(self, images: Sequence[AnyImage]) -> Tensor:
        return stacked(images, self._image_size).to(self.device)

    def _text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        text_BL, valid_BL = self._tokens.batch(texts)
        return text_BL.to(self.device), valid_BL.to(self.device)


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    size = whole("batch", size)
    if not items:
        raise UserError("There is nothing to compute: give at least one image or text.")
    return [items[first : first + size] for first in range(0, len(items), size)]
