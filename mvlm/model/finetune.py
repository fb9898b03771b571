"""Fine-tuning: an image or a pair of them, a text, and a choice among classes. Shape legend: mvlm/batch.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvlm.batch import GlobalBatch, LabelledBatch, Losses, MetricAccumulator
from mvlm.config.schema import Model, Task
from mvlm.kernels.fusion import FUSION, Stream
from mvlm.model.encoders import Encoders
from mvlm.model.fusion import init_linear
from mvlm.model.losses.labels import answer_loss, label_loss, label_right
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder

HEAD = "head."
"""How the new parameters' names begin; pretraining has all others."""

LOSSES = {"vqa": answer_loss, "nlvr2": label_loss, "entailment": label_loss}


class Head(nn.Sequential):
    """Two layers from the features of a sample to its classes."""

    def __init__(self, features: int, inner: int, classes: int, std: float) -> None:
        super().__init__(nn.Linear(features, inner), nn.GELU(), nn.LayerNorm(inner), nn.Linear(inner, classes))
        self.apply(lambda module: init_linear(module, std))


class TaskModel(Encoders):
    """The encoders of a MaskVLM, and a classifier of the two cross-modality encoders' CLS outputs, concatenated.

    NLVR2's two images are each read with the same sentence, and all four outputs are concatenated.

    Args:
        classes: how many there are to choose among.
    """

    def __init__(self, vision: VisionEncoder, text: TextEncoder, config: Model, task: Task, classes: int) -> None:
        super().__init__(vision, text, config)
        self.task = task
        width = vision.width + text.width
        self.head = Head(task.images * width, width, classes, config.cross_init_std)

    def forward(
        self, batch: LabelledBatch, global_batch: GlobalBatch | None = None, metrics: MetricAccumulator | None = None
    ) -> Losses:
        """The loss of a micro-batch, which depends on no other one, so that `global_batch` changes nothing."""
        logits_BA = self.logits(batch.image_VBCHW, batch.text_TBL[0], batch.valid_TBL[0])
        if metrics:
            metrics.count("task_accuracy", label_right(logits_BA, batch.label_B))
        return {"task": LOSSES[self.task.name](logits_BA, batch.label_B)}

    def logits(self, image_VBCHW: Tensor, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """uint8 images and token ids -> BA."""
        count = len(image_VBCHW)
        image_XSD = self.encode_image(image_VBCHW.flatten(0, 1))  # X = all first images, then all second ones
        text_XLD = self.encode_text(text_BL, valid_BL).repeat(count, 1, 1)
        valid_XL = valid_BL.repeat(count, 1)
        cls_X1 = torch.zeros(len(image_XSD), 1, dtype=torch.int64, device=valid_BL.device)
        image, text = Stream(image_XSD, text_XLD, cls_X1), Stream(text_XLD, image_XSD, cls_X1)
        fused_image_X1D, _ = FUSION(self.cross_image, image, context_valid_BU=valid_XL)
        fused_text_X1D, _ = FUSION(self.cross_text, text, valid_BL=valid_XL)
        features_XD = torch.cat([fused_image_X1D[:, 0], fused_text_X1D[:, 0]], dim=-1)
        return self.head(torch.cat(features_XD.chunk(count), dim=-1))
