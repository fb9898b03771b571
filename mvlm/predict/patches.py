"""Hidden patches of an image restored, with its sentence and without."""

from __future__ import annotations

import numpy as np
import torch

from mvlm.evaluate import shares
from mvlm.evaluate.examples import GREY, paste, pictures_of
from mvlm.evaluate.reconstruction import empty_sentence, patch_masks, pixel_target, restore_image
from mvlm.model.weights import Loaded
from mvlm.predict.draw import array_tile, strip
from mvlm.predict.prediction import Answer, Asked, file_name, open_pictures, pair_up, printable


class Patches:
    name = "patches"
    help = "hidden patches of each image, restored with its sentence and without"

    def run(self, loaded: Loaded, asked: Asked, device: torch.device) -> Answer:
        """Which patches are hidden follows from the run's seed and the number of the image, as in evaluation."""
        asked, model = pair_up(asked), loaded.model
        pictures = open_pictures(loaded, asked)
        entries, lines, drawings = [], [], {}
        for number, (path, sentence) in enumerate(zip(asked.images, asked.sentences, strict=True)):
            with shares.inference(model):
                image_1CHW = pictures.images([number]).to(device)
                mask_1N = patch_masks(model, np.array([number])).to(device)
                hidden_1SD, target_1NQ = model.encode_image(image_1CHW, mask_1N), pixel_target(model, image_1CHW)
                restored, errors = [], []
                for text_1L, valid_1L in (pictures.tokens.batch([sentence]), empty_sentence(pictures, 1)):
                    pixels_1NQ = restore_image(model, hidden_1SD, mask_1N, text_1L.to(device), valid_1L.to(device))
                    restored.append(pictures_of(paste(model, image_1CHW, mask_1N, pixels_1NQ))[0])
                    errors.append(float((pixels_1NQ - target_1NQ)[mask_1N].abs().mean()))
                grey_1NQ = model.patchify(image_1CHW.float()).masked_fill(mask_1N[..., None], GREY)
            entry = {"image": str(path), "sentence": sentence, "l1_with": errors[0], "l1_without": errors[1]}
            entries.append(entry)
            lines += [
                f"{printable(path)}: {printable(sentence)}",
                f"  L1 of the hidden patches: {errors[0]:.3f} with the sentence, {errors[1]:.3f} without",
            ]
            if asked.draws:
                shown = [pictures_of(image_1CHW)[0], pictures_of(model.unpatchify(grey_1NQ))[0], *restored]
                labels = ("the image", "what is shown", "with the sentence", "without it")
                tiles = [array_tile(picture, label) for picture, label in zip(shown, labels, strict=True)]
                drawings[file_name(number, path)] = strip(tiles)
        return Answer(entries, "\n".join(lines), drawings)
