"""Pictures reconstructed while a run trains: the same few held-out ones each time, so that progress can be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.evaluate.examples import ImageExample, reconstructed
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.runtime.log import log

PICTURES = "pictures"
ALL, GAP, WHITE = 32, 4, 255
LARGEST = 256  # pixels per side of each view, at most


def is_due(turn: int) -> bool:
    """Whether evaluation number `turn` of a run makes pictures: the first 32, then 16 for each doubling.

    A thousand evaluations make 111, and a resumed run the same ones.
    """
    return turn % (1 << max(0, turn.bit_length() - ALL.bit_length() + 1)) == 0


def write_pictures(
    model: MaskVLM, dataset: EvalDataset, count: int, folder: Path, step: int, device: torch.device
) -> Path | None:
    """Reconstruct `count` rows, evenly apart; all ranks must call, rank 0 writes `pictures/step_00001000.png`.

    Each row of the picture shows an original, its masked patches in grey, and the reconstructions with and without the
    sentence.

    Returns:
        The picture's path; None if it could not be written, which is logged and stops nothing.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    drawn = [_row(example) for example in reconstructed(model, dataset, rows.tolist(), device)]
    path = folder / PICTURES / f"step_{step:08d}.png"
    if dist.rank() == 0:
        beside = np.full((GAP, *drawn[0].shape[1:]), WHITE, np.uint8)
        whole = np.concatenate([part for row in drawn for part in (row, beside)][:-1])
        try:
            path.parent.mkdir(exist_ok=True)  # without parents: a run folder that is gone must not come back
            Image.fromarray(whole).save(path)
        except OSError as error:
            log.warning(f"{path} could not be written ({error}); the run continues.")
            return None
    return path


def _row(example: ImageExample) -> np.ndarray:
    views = [_small(view) for view in (example.original, example.masked, example.with_text, example.without_text)]
    beside = np.full((len(views[0]), GAP, 3), WHITE, np.uint8)
    return np.concatenate([part for view in views for part in (view, beside)][:-1], axis=1)


def _small(view_HWC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(view_HWC)
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image)
