"""Hidden patches of an image restored, with its sentence and without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.evaluate import shares
from mvlm.evaluate.examples import GREY, paste, pictures_of
from mvlm.evaluate.reconstruction import patch_masks, pixel_target, restore_image
from mvlm.model.maskvlm import MaskVLM
from mvlm.predict.draw import array_tile, strip
from mvlm.predict.prediction import Answer, Asked, file_name, open_pictures, pair_up, printable
from mvlm.pretrained.runs import Loaded


@dataclass(frozen=True)
class Restored:
    """An image with hidden patches; the pictures are uint8 [H, W, 3]."""

    shown: np.ndarray  # hidden patches grey
    with_sentence: np.ndarray
    without_sentence: np.ndarray
    l1_with: float  # over the hidden patches, in the space trained in
    l1_without: float


def restore(model: MaskVLM, tokens: CaptionTokenizer, image_1CHW: Tensor, mask_1N: Tensor, sentence: str) -> Restored:
    """Restore the hidden patches of an image, once with the sentence and once with an empty one.

    Args:
        image_1CHW: uint8, on the model's device.
        mask_1N: bool, True = hidden: at least one, and not all.
    """
    device, pictures, errors = image_1CHW.device, [], []
    with shares.inference(model):
        hidden_1SD, target_1NQ = model.encode_image(image_1CHW, mask_1N), pixel_target(model, image_1CHW)
        for words in (sentence, ""):
            text_1L, valid_1L = (tensor.to(device) for tensor in tokens.batch([words]))
            pixels_1NQ = restore_image(model, hidden_1SD, mask_1N, text_1L, valid_1L)
            pictures.append(pictures_of(paste(model, image_1CHW, mask_1N, pixels_1NQ))[0])
            errors.append(float((pixels_1NQ - target_1NQ)[mask_1N].abs().mean()))
        grey_1NQ = model.patchify(image_1CHW.float()).masked_fill(mask_1N[..., None], GREY)
    return Restored(pictures_of(model.unpatchify(grey_1NQ))[0], pictures[0], pictures[1], errors[0], errors[1])


class Patches:
    name = "patches"
    help = "hidden patches of each image, restored with its sentence and without"

    def run(self, loaded: Loaded, asked: Asked, device: torch.device) -> Answer:
        """Which patches are hidden follows from the run's seed and the number of the image, as in evaluation."""
        asked, model = pair_up(asked), loaded.model
        pictures = open_pictures(loaded, asked)
        entries, lines, drawings = [], [], {}
        for number, (path, sentence) in enumerate(zip(asked.images, asked.sentences, strict=True)):
            image_1CHW = pictures.images([number]).to(device)
            mask_1N = patch_masks(model, np.array([number])).to(device)
            found = restore(model, pictures.tokens, image_1CHW, mask_1N, sentence)
            entry = {"image": str(path), "sentence": sentence, "l1_with": found.l1_with, "l1_without": found.l1_without}
            entries.append(entry)
            lines += [
                f"{printable(path)}: {printable(sentence)}",
                f"  L1 of the hidden patches: {found.l1_with:.3f} with the sentence, {found.l1_without:.3f} without",
            ]
            if asked.draws:
                shown = [pictures_of(image_1CHW)[0], found.shown, found.with_sentence, found.without_sentence]
                labels = ("the image", "what is shown", "with the sentence", "without it")
                tiles = [array_tile(picture, label) for picture, label in zip(shown, labels, strict=True)]
                drawings[file_name(number, path)] = strip(tiles)
        return Answer(entries, "\n".join(lines), drawings)
