"""A task of `mvlm evaluate`: how far apart the features of all images and of all captions lie.

The modality gap of Liang et al. 2022 (arXiv 2203.02053): the distance between the two means of unit vectors, 0 to 2.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table

from mvlm.evaluate import shares
from mvlm.evaluate.retrieval import image_features, text_features
from mvlm.evaluate.settings import Settings, captions_of
from mvlm.evaluate.tables import render
from mvlm.pretrained.runs import Loaded


class Gap:
    name = "gap"

    def run(self, loaded: Loaded, settings: Settings, device: torch.device) -> dict[str, Any]:
        dataset = captions_of(loaded, settings)
        with shares.inference(loaded.model):  # each rank computes its share, and every rank gets all of them
            image_NE = image_features(loaded.model, dataset, settings.search.batch, device)
            text_ME = text_features(loaded.model, dataset, settings.search.batch, device)
        gap = (image_NE.mean(0) - text_ME.mean(0)).norm()
        protocol = f"Distance between the means of {len(image_NE)} images and {len(text_ME)} captions."
        return {"gap": float(gap), "images": len(image_NE), "captions": len(text_ME), "protocol": protocol}

    def text(self, result: dict[str, Any]) -> str:
        table = Table("modality gap", "of at most")
        table.add_row(f"{result['gap']:.3f}", "2")
        return render(table, result["protocol"])
