"""Where colour words look in the synthetic world: at the thing of that colour, or at the place the sentence names."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from data_tools.synth.scenes import CELLS
from mvlm.data.samples.foils import FoilDataset
from mvlm.evaluate import shares
from mvlm.model.maskvlm import MaskVLM
from mvlm.predict.attention import token_attention

CHANCE = 1 / len(CELLS)


def grounding(model: MaskVLM, dataset: FoilDataset, batch: int, device: torch.device) -> dict[str, float]:
    """Shares of colour words that attend most to one of the four cells.

    Args:
        dataset: scenes, each with its caption and that of the scene in which two colours or two shapes are exchanged.

    Returns:
        `grounded`: with the caption, at the cell where caption and picture have the colour. With the false caption of
        foils that exchange colours: `grounded_picture`, at a cell where the picture has the colour, and
        `grounded_sentence`, at the one that the sentence gives it. Chance is one in four.
    """
    hits: dict[str, list[bool]] = {"grounded": [], "grounded_picture": [], "grounded_sentence": []}
    with shares.inference(model):
        for first in range(0, len(dataset), batch):
            rows = range(first, min(first + batch, len(dataset)))
            image_BSD = model.encode_image(dataset.images(rows).to(device))
            for false in (0, 1):
                sentences = [2 * row + false for row in rows]
                cells = _most_attended(model, dataset, sentences, image_BSD, device)
                for row, sentence, looked in zip(rows, sentences, cells, strict=True):
                    _note(hits, dataset, row, sentence, looked)
    return {name: sum(found) / len(found) for name, found in hits.items() if found}


def colours(caption: str) -> Iterator[tuple[str, int, int]]:
    """For each colour word of a caption such as "red circle top left, blue star top right": the word, where it begins,
    and the number of the cell that its thing is in."""
    at = 0
    for part in caption.split(", "):
        colour, _, place = part.split(" ", 2)
        yield colour, at, CELLS.index(place)
        at += len(part) + 2


def _note(hits: dict[str, list[bool]], dataset: FoilDataset, row: int, sentence: int, looked: list[int]) -> None:
    true, said = (list(colours(dataset.captions[index])) for index in (2 * row, sentence))
    shown: dict[str, list[int]] = {}
    for colour, _, cell in true:
        shown.setdefault(colour, []).append(cell)
    for (colour, _, cell), cell_looked_at in zip(said, looked, strict=True):
        if sentence == 2 * row:
            hits["grounded"].append(cell_looked_at == cell)
        elif cell not in shown.get(colour, [cell]):  # the picture has the colour, but only in other cells
            hits["grounded_picture"].append(cell_looked_at in shown[colour])
            hits["grounded_sentence"].append(cell_looked_at == cell)


def _most_attended(
    model: MaskVLM, dataset: FoilDataset, sentences: list[int], image_BSD: torch.Tensor, device: torch.device
) -> list[list[int]]:
    """For each colour word of each sentence, the cell that its tokens give the most attention."""
    text_BL, valid_BL = (tensor.to(device) for tensor in dataset.texts(sentences))
    share_BLN = token_attention(model, image_BSD, model.encode_text(text_BL, valid_BL), valid_BL)
    rows, columns = model.grid
    share_BLhrwc = share_BLN.float().cpu().unflatten(2, (2, rows // 2, 2, columns // 2))
    cell_BL4 = share_BLhrwc.sum((3, 5)).flatten(2)
    found = []
    for row, sentence in enumerate(sentences):
        caption = dataset.captions[sentence]
        spans = dataset.tokens.spans(caption)
        of_words = []
        for colour, at, _ in colours(caption):
            tokens = [i for i, (first, last) in enumerate(spans) if first < at + len(colour) and last > at]
            of_words.append(int(cell_BL4[row, tokens].sum(0).argmax()))
        found.append(of_words)
    return found
