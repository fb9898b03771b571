"""Answers to the page's questions, as JSON values; pictures are data URLs of PNG and JPEG made here."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvlm.data.images.decode import BadImage, Decoded, load_image
from mvlm.data.images.encoded import PIXEL_LIMIT
from mvlm.data.images.transforms import eval_view
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.data.shards.mixture import Mixture, held_out
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.evaluate.examples import image_examples, pictures_of
from mvlm.evaluate.settings import reading_of
from mvlm.evaluate.untrained import untrained
from mvlm.model import masking
from mvlm.model.maskvlm import MaskVLM
from mvlm.predict.words import blank_image, guess_words, likeliest, mask_words
from mvlm.pretrained.runs import Loaded
from mvlm.search.find import ImageIndex, find_by_image, find_by_sentence
from mvlm.search.metadata import Metadata
from mvlm.serve.asked import AskedDrawings, AskedPatches, AskedPicture, AskedSearch, AskedView, AskedWords

SAMPLES = 8
THUMBNAIL = 256  # pixels
GUESSES = 4

PANELS: dict[str, Literal["image", "text"]] = {"patches": "image", "words": "text"}
"""The objective that each panel shows."""

RERANK = 24


@dataclass(frozen=True)
class SampleImage:
    caption: str
    picture: Image.Image


class Answers:
    """Answers from one model; they must not be computed concurrently.

    Args:
        index: images to search; None = there are none.
    """

    def __init__(self, loaded: Loaded[MaskVLM], index: ImageIndex | None, device: torch.device) -> None:
        self.loaded, self.index, self.device = loaded, index, device
        self.model, objectives = loaded.model, loaded.blueprint.objectives
        self.tokenizer, length, self.side = reading_of(loaded)
        self.tokens = BatchTokenizer(self.tokenizer, length)
        self.block, self.masked_share = objectives.image_mask_block, objectives.image_mask_ratio
        self.squares = masking.block_grid(self.model.grid, self.block)
        self.samples = _samples(self._shards())
        self.metadata = Metadata(index) if index else None

    def about(self) -> dict[str, Any]:
        """What the page needs to know first."""
        return {
            "step": self.loaded.step,
            "squares": self.squares,
            "hidden_share": self.masked_share,
            "images": len(self.index) if self.index else 0,
            "untrained": {panel: untrained(self.model, name) for panel, name in PANELS.items()},
            "samples": [{"caption": s.caption, "picture": data_url(s.picture)} for s in self.samples],
        }

    def view(self, asked: AskedView) -> dict[str, Any]:
        """The picture as the model sees it."""
        return {"picture": array_url(pictures_of(self._image(asked.picture))[0])}

    def search(self, asked: AskedSearch) -> dict[str, Any]:
        index, metadata = self._searched()
        last = asked.skip + asked.top
        if asked.picture is not None:
            image_1CHW = self._image(asked.picture)
            found = find_by_image(index, self.loaded, image_1CHW, last, self.device)
        elif asked.sentence.strip():
            found = find_by_sentence(index, self.loaded, asked.sentence, last, RERANK, self.device)
        else:
            raise UserError("There is nothing to search for: write a sentence or choose a picture.")
        return {
            "found": [
                {
                    "image": each.image,
                    "key": each.key,
                    "caption": each.caption,
                    "similarity": each.similarity,
                    "match": each.match,
                    "picture": data_url(index.picture(each.image)),
                    "about": metadata.of(each.image),
                }
                for each in found[asked.skip :]
            ],
            "cut": "" if asked.picture else self.tokens.cut_warning([asked.sentence]),
        }

    def drawings(self, asked: AskedDrawings) -> dict[str, Any]:
        """The SVG of each image that was found, None if there is none."""
        index, metadata = self._searched()
        if any(image >= len(index) for image in asked.images):
            raise _no_picture()
        return {"drawings": metadata.drawings(asked.images)}

    def _searched(self) -> tuple[ImageIndex, Metadata]:
        if self.index is None or self.metadata is None:
            raise UserError("There is no index here: start `mvlm serve` with --index.")
        return self.index, self.metadata

    def patches(self, asked: AskedPatches) -> dict[str, Any]:
        """The masked squares, reconstructed with the sentence and without."""
        mask_1N = self._mask(asked.hidden)
        with shares.inference(self.model):
            (found,) = image_examples(self.model, [asked.sentence], self.tokens, self._image(asked.picture), mask_1N)
        return {
            "with_sentence": array_url(found.with_text),
            "without_sentence": array_url(found.without_text),
            "l1_with": found.l1_with,
            "l1_without": found.l1_without,
            "cut": self.tokens.cut_warning([asked.sentence]),
        }

    def words(self, asked: AskedWords) -> dict[str, Any]:
        """Guesses for the masked words: with the picture, without one, and with another if one is given."""
        masked = mask_words(self.tokens, asked.words, asked.hidden)
        image_1CHW = self._image(asked.picture)
        images = {"with_image": image_1CHW, "without_image": blank_image(self.model, image_1CHW)}
        if asked.other is not None:
            images["other_image"] = self._image(asked.other)
        guesses = guess_words(self.model, *masked.tensors(self.tokens, self.device), images, GUESSES)
        answers: list[dict[str, Any]] = [{"place": place, "word": asked.words[place]} for place in masked.words]
        for name, of_tokens in guesses.items():
            for answer, of_word in zip(answers, masked.by_word(of_tokens), strict=True):
                answer[name] = likeliest(self.tokenizer, of_word, GUESSES)
        return {"words": answers, "cut": self.tokens.cut_warning([" ".join(asked.words)])}

    def _image(self, picture: AskedPicture) -> Tensor:
        """uint8 1CHW as the model reads it, on its device.

        Raises:
            UserError: it is not a picture, or there is none with that number.
        """
        view_CHW = eval_view(Decoded(self._decoded(picture)), self.side)
        return torch.from_numpy(view_CHW)[None].to(self.device)

    def _decoded(self, picture: AskedPicture) -> Image.Image:
        match picture:
            case AskedPicture(upload=str(text), sample=None, found=None):
                return _uploaded(text)
            case AskedPicture(upload=None, sample=int(number), found=None) if number < len(self.samples):
                return self.samples[number].picture
            case AskedPicture(upload=None, sample=None, found=int(number)) if self.index and number < len(self.index):
                return self.index.picture(number)
        raise _no_picture()

    def _mask(self, chosen: list[int]) -> Tensor:
        rows, columns = self.squares
        squares = np.zeros(rows * columns, dtype=bool)
        squares[[square for square in chosen if square < len(squares)]] = True
        if not squares.any():
            raise UserError("Nothing is hidden: hide a square of the picture.")
        if squares.all():
            raise UserError("Everything is hidden: leave the model a square to see.")
        mask_N = squares.reshape(rows, columns).repeat(self.block, axis=0).repeat(self.block, axis=1).ravel()
        return torch.from_numpy(mask_N)[None].to(self.device)

    def _shards(self) -> Mixture | None:
        """The source of samples: the index's corpus, or the run's held-out data; neither need be on this machine."""
        data = self.loaded.data
        try:
            if self.index:
                return self.index.shards
            return held_out(data) if data.eval else None
        except UserError:
            return None


def _no_picture() -> UserError:
    return UserError("There is no such picture here: choose another.")


def _samples(shards: Mixture | None) -> list[SampleImage]:
    """Some evenly spaced images, with their first captions."""
    if shards is None:
        return []
    samples = []
    for row in np.linspace(0, len(shards) - 1, min(SAMPLES, len(shards))).round().astype(int).tolist():
        try:
            content = shards.row(row)
            picture = load_image(content.image)
        except (BadImage, UnreadableRow):
            continue
        picture.thumbnail((1024, 1024))
        samples.append(SampleImage(content.captions[0], picture))
    return samples


def _uploaded(text: str) -> Image.Image:
    try:
        return load_image(base64.b64decode(text.encode(errors="replace"), validate=True))
    except (BadImage, binascii.Error):
        raise UserError(
            "This is not a picture that can be shown, or it is damaged or too large: choose a JPEG, PNG, WebP, TIFF or "
            f"other image file of at most {PIXEL_LIMIT // 1_000_000} million pixels."
        ) from None


def array_url(picture_HWC: np.ndarray) -> str:
    return data_url(Image.fromarray(picture_HWC), 1024)


def data_url(picture: Image.Image, side: int = THUMBNAIL) -> str:
    """The picture, shrunk to fit a square of `side` pixels; small ones are stored losslessly."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side))
    buffer, kind = io.BytesIO(), "PNG" if max(picture.size) <= 128 else "JPEG"
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
