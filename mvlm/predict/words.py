"""Guesses for masked words of a sentence, with its image and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.samples.padding import pad
from mvlm.data.samples.spelling import spelled
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.evaluate.settings import open_pictures
from mvlm.model.maskvlm import MaskVLM
from mvlm.predict.attention import attention_strips
from mvlm.predict.prediction import Answer, Asked, file_name, pair_up, printable
from mvlm.pretrained.runs import Loaded

MASK = "[MASK]"


def guess_words(
    model: MaskVLM, text_1L: Tensor, valid_1L: Tensor, masked_1L: Tensor, images: dict[str, Tensor], top: int
) -> dict[str, list[list[tuple[int, float]]]]:
    """By the name of each image: for each masked token, the `top` tokens and their probabilities given that image.

    Args:
        text_1L: the sentence with the mask token where `masked_1L` is True.
        images: each uint8 1CHW, on the model's device.
    """
    guesses = {}
    with shares.inference(model):
        text_1LD = model.encode_text(text_1L, valid_1L)
        for name, shown_1CHW in images.items():
            fused_1LD = model.fuse_text(text_1LD, model.encode_image(shown_1CHW), valid_1L)
            probability_MV = model.reconstruct_text(fused_1LD[masked_1L]).float().softmax(-1)
            best = probability_MV.topk(min(top, probability_MV.shape[1]), dim=-1)
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            guesses[name] = [list(zip(ids, shares_, strict=True)) for ids, shares_ in rows]
    return guesses


@dataclass(frozen=True)
class Masked:
    """A sentence in which every token of some words is masked."""

    text_L: np.ndarray
    words: list[int]  # the places of the masked words among all words
    tokens: list[list[int]]  # for each of them, the places of its tokens in text_L

    def tensors(self, tokens: CaptionTokenizer, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """text_1L, valid_1L and masked_1L, as `guess_words` takes them."""
        text_1L, valid_1L = (tensor.to(device) for tensor in pad([self.text_L], tokens.pad_id, tokens.length))
        masked_1L = torch.zeros_like(valid_1L)
        masked_1L[0, [place for of_word in self.tokens for place in of_word]] = True
        return text_1L, valid_1L, masked_1L

    def by_word(self, guesses: list[list[tuple[int, float]]]) -> list[list[list[tuple[int, float]]]]:
        """The guesses for all masked tokens, grouped by word."""
        following = iter(guesses)
        return [[next(following) for _ in of_word] for of_word in self.tokens]


def mask_words(tokens: CaptionTokenizer, words: Sequence[str], places: Sequence[int]) -> Masked:
    """Mask some words of a sentence, its words joined by single spaces.

    Args:
        places: of the words to mask, among `words`.

    Raises:
        UserError: none is masked, or one is beyond the tokens that the model reads.
    """
    sentence, chosen = " ".join(words), sorted({place for place in places if place < len(words)})
    if not chosen:
        raise UserError("No word is hidden: hide one.")
    text_L, spans, of_words = tokens.encode(sentence).copy(), tokens.spans(sentence), []
    for word in chosen:
        first = sum(len(before) + 1 for before in words[:word])
        last = first + len(words[word])
        of_words.append([place for place, (start, end) in enumerate(spans) if start < last and end > first])
        if not of_words[-1]:
            if not any(end > start for start, end in tokens.spans(words[word])):
                raise UserError(f"The word {words[word]!r} has nothing that this model reads: hide another.")
            raise UserError(
                f"The word {words[word]!r} is beyond the {tokens.length} tokens that this model reads: "
                "give a shorter sentence."
            )
        text_L[of_words[-1]] = tokens.mask_id
    return Masked(text_L, chosen, of_words)


def likeliest(
    tokenizer: PreTrainedTokenizerBase, guesses: list[list[tuple[int, float]]], top: int
) -> list[dict[str, Any]]:
    """The `top` fillings of a word of one or more tokens, each token guessed independently: {word, probability}."""
    best: list[tuple[list[int], float]] = [([], 1.0)]
    for of_token in guesses:
        longer = [([*ids, token], share * odds) for ids, share in best for token, odds in of_token]
        best = sorted(longer, key=lambda each: -each[1])[:top]
    return [{"word": spelled(tokenizer, ids), "probability": share} for ids, share in best]


def blank_image(model: MaskVLM, image_1CHW: Tensor) -> Tensor:
    """An image of the same shape that shows nothing: all of it the colour that the encoder normalises to 0."""
    colour = (torch.tensor(model.vision.mean) * 255).round().to(torch.uint8).view(3, 1, 1)
    return torch.ones_like(image_1CHW) * colour.to(image_1CHW.device)


class Words:
    name = "words"

    def run(self, loaded: Loaded, asked: Asked, device: torch.device) -> Answer:
        paths, sentences = pair_up(asked.images, asked.sentences)
        pictures, tokenizer = open_pictures(loaded, paths, sentences), load_tokenizer(str(loaded.tokenizer_folder))
        entries, lines, drawings = [], [], {}
        for number, (path, sentence) in enumerate(zip(paths, sentences, strict=True)):
            masked = sentence.replace(MASK, tokenizer.mask_token)
            read = int((pictures.tokens.encode(masked) == pictures.tokens.mask_id).sum())
            check_masks(sentence, read, pictures.tokens.length)
            text_1L, valid_1L = (tensor.to(device) for tensor in pictures.tokens.batch([masked]))
            image_1CHW = pictures.images([number]).to(device)
            images = {"with_image": image_1CHW, "without_image": blank_image(loaded.model, image_1CHW)}
            masked_1L = text_1L == pictures.tokens.mask_id
            best = guess_words(loaded.model, text_1L, valid_1L, masked_1L, images, asked.top)
            guesses = {name: [_spelled(tokenizer, ids) for ids in of_masks] for name, of_masks in best.items()}
            filled = _fill(sentence, [words[0]["word"] for words in guesses["with_image"]])
            entries.append({"image": str(path), "sentence": sentence, "filled": filled, **guesses})
            lines += [f"{printable(path)}: {printable(filled)}", *_lines(guesses)]
            if asked.draws:
                drawings[file_name(number, path)] = attention_strips(loaded.model, pictures, number, filled, device)
        return Answer(entries, "\n".join(lines), drawings)


def check_masks(sentence: str, read: int, length: int) -> None:
    """Raise `UserError` if a sentence masks nothing, or a model that reads `length` tokens finds not as many masks in
    it (`read`) as are written there."""
    written = sentence.count(MASK)
    if not written:
        raise UserError(f"The sentence {sentence!r} masks no word: write {MASK} in the place of one.")
    if read > written:
        raise UserError(f"The sentence {sentence!r} has a mask of the tokenizer's own: write {MASK} in its place.")
    if read != written:
        raise UserError(
            f"Of the {written} masked words of {sentence!r} {read} are within the {length} tokens "
            "that this model reads: give a shorter sentence."
        )


def _spelled(tokenizer: PreTrainedTokenizerBase, guesses: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"word": spelled(tokenizer, [token]), "probability": share} for token, share in guesses]


def _fill(sentence: str, words: list[str]) -> str:
    for word in words:
        sentence = sentence.replace(MASK, word, 1)
    return sentence


def _lines(guesses: dict[str, Any]) -> list[str]:
    lines = []
    for number in range(len(guesses["with_image"])):
        for name in ("with_image", "without_image"):
            best = ", ".join(f"{printable(g['word'])} {g['probability']:.1%}" for g in guesses[name][number])
            lines.append(f"  {MASK} {number + 1} {name.replace('_', ' '):14} {best}")
    return lines
