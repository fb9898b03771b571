"""Reconstruction of masked patches of an image, with its sentence and without."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from mvlm.evaluate import shares
from mvlm.evaluate.examples import image_examples
from mvlm.evaluate.reconstruction import patch_masks
from mvlm.evaluate.settings import open_pictures
from mvlm.predict.draw import strip, tile
from mvlm.predict.prediction import Answer, Asked, file_name, pair_up, printable
from mvlm.pretrained.runs import Loaded


class Patches:
    name = "patches"

    def run(self, loaded: Loaded, asked: Asked, device: torch.device) -> Answer:
        """Reconstruct each image; as in evaluation, the run's seed and the image's number decide what to mask."""
        paths, sentences = pair_up(asked.images, asked.sentences)
        pictures, model = open_pictures(loaded, paths, sentences), loaded.model
        entries, lines, drawings = [], [], {}
        for number, (path, sentence) in enumerate(zip(paths, sentences, strict=True)):
            image_1CHW = pictures.images([number]).to(device)
            mask_1N = patch_masks(model, np.array([number])).to(device)
            with shares.inference(model):
                (found,) = image_examples(model, [sentence], pictures.tokens, image_1CHW, mask_1N)
            entry = {"image": str(path), "sentence": sentence, "l1_with": found.l1_with, "l1_without": found.l1_without}
            entries.append(entry)
            lines += [
                f"{printable(path)}: {printable(sentence)}",
                f"  L1 of the masked patches: {found.l1_with:.3f} with the sentence, {found.l1_without:.3f} without",
            ]
            if asked.draws:
                shown = [found.original, found.masked, found.with_text, found.without_text]
                labels = ("the image", "what is shown", "with the sentence", "without it")
                tiles = [tile(Image.fromarray(picture), label) for picture, label in zip(shown, labels, strict=True)]
                drawings[file_name(number, path)] = strip(tiles)
        return Answer(entries, "\n".join(lines), drawings)
