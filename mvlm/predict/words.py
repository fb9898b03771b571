"""Hidden words of a sentence filled in, with its image and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvlm.data.pictures import Pictures
from mvlm.data.tokenizer import load_tokenizer
from mvlm.errors import UserError
from mvlm.evaluate import shares
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.weights import Loaded
from mvlm.predict.attention import attention_strips
from mvlm.predict.prediction import Answer, Asked, file_name, open_pictures, pair_up, printable

MASK = "[MASK]"


def guess_words(
    model: MaskVLM, pictures: Pictures, row: int, masked: str, top: int, device: torch.device
) -> dict[str, list[list[tuple[int, float]]]]:
    """The `top` tokens, with their probabilities, for each hidden word: `with_image`, and `without_image`.

    Args:
        masked: the sentence with the tokenizer's mask token where a word is hidden.

    Without an image is with one of the colour that the encoder's normalisation makes 0.
    """
    text_1L, valid_1L = (tensor.to(device) for tensor in pictures.tokens.batch([masked]))
    hidden_1L = text_1L == pictures.tokens.mask_id
    image_1CHW = pictures.images([row]).to(device)
    blank_1CHW = torch.ones_like(image_1CHW) * _mean_colour(model).to(device)
    guesses = {}
    with shares.inference(model):
        text_1LD = model.encode_text(text_1L, valid_1L)
        for name, shown_1CHW in (("with_image", image_1CHW), ("without_image", blank_1CHW)):
            fused_1LD = model.fuse_text(text_1LD, model.encode_image(shown_1CHW), valid_1L)
            probability_MV = model.reconstruct_text(fused_1LD[hidden_1L]).float().softmax(-1)
            best = probability_MV.topk(min(top, probability_MV.shape[1]), dim=-1)
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            guesses[name] = [list(zip(ids, shares_, strict=True)) for ids, shares_ in rows]
    return guesses


def _mean_colour(model: MaskVLM) -> Tensor:
    return (torch.tensor(model.vision.mean) * 255).round().to(torch.uint8).view(3, 1, 1)


class Words:
    name = "words"
    help = f"the words that {MASK} hides in each sentence, with its image and without"

    def run(self, loaded: Loaded, asked: Asked, device: torch.device) -> Answer:
        asked, tokenizer = pair_up(asked), load_tokenizer(str(loaded.tokenizer_folder))
        pictures = open_pictures(loaded, asked)
        entries, lines, drawings = [], [], {}
        for number, (path, sentence) in enumerate(zip(asked.images, asked.sentences, strict=True)):
            masked = sentence.replace(MASK, tokenizer.mask_token)
            _check(sentence, int((pictures.tokens.encode(masked) == pictures.tokens.mask_id).sum()), loaded)
            best = guess_words(loaded.model, pictures, number, masked, asked.top, device)
            guesses = {name: [_spelled(tokenizer, ids) for ids in of_masks] for name, of_masks in best.items()}
            filled = _fill(sentence, [words[0]["word"] for words in guesses["with_image"]])
            entries.append({"image": str(path), "sentence": sentence, "filled": filled, **guesses})
            lines += [f"{printable(path)}: {printable(filled)}", *_lines(guesses)]
            if asked.draws:
                drawings[file_name(number, path)] = attention_strips(loaded.model, pictures, number, filled, device)
        return Answer(entries, "\n".join(lines), drawings)


def _check(sentence: str, read: int, loaded: Loaded) -> None:
    written = sentence.count(MASK)
    if not written:
        raise UserError(f"The sentence {sentence!r} hides no word: write {MASK} in the place of one.")
    if read != written:
        raise UserError(
            f"Of the {written} hidden words of {sentence!r} {read} are within the {loaded.config.data.text_length} "
            "tokens that this model reads: give a shorter sentence."
        )


def _spelled(tokenizer: PreTrainedTokenizerBase, guesses: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"word": str(tokenizer.decode([token])).strip(), "probability": share} for token, share in guesses]


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
