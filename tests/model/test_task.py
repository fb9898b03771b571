"""The fine-tuned model: what its head reads, what its loss trains, and that rows do not mix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mvlm.batch import LabelledBatch, MetricAccumulator
from mvlm.config.schema import Task
from mvlm.model.finetune import TaskModel
from mvlm.pretrained.encoders import build_model
from tests.evaluate.tiny import CONFIG, make_tokenizer

B, CLASSES = 3, 5


def make(task: str) -> tuple[TaskModel, LabelledBatch]:
    torch.manual_seed(0)
    model = build_model(replace(CONFIG, task=Task(task)).blueprint, make_tokenizer(), CLASSES).eval()
    images = 2 if task == "nlvr2" else 1
    valid_BL = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 3 + [False] * 3])
    batch = LabelledBatch(
        image_VBCHW=torch.randint(0, 256, (images, B, 3, 16, 16), dtype=torch.uint8),
        text_TBL=torch.randint(5, 250, (1, B, 6)).where(valid_BL, torch.tensor(1)),
        valid_TBL=valid_BL[None],
        label_B=torch.rand(B, CLASSES) if task == "vqa" else torch.tensor([0, 1, 1]),
        position_B=torch.arange(B),
        row_B=torch.arange(B),
    )
    return model, batch


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_the_head_reads_both_cls_tokens_of_every_image(task: str) -> None:
    """Compared with encoding and fusing each image with its text, every token included."""
    model, batch = make(task)
    text_BL, valid_BL = batch.text_TBL[0], batch.valid_TBL[0]
    features = []
    for image_BCHW in batch.image_VBCHW:
        image_BSD, text_BLD = model.encode_image(image_BCHW), model.encode_text(text_BL, valid_BL)
        features.append(model.fuse_image(image_BSD, text_BLD, valid_BL)[:, 0])
        features.append(model.fuse_text(text_BLD, image_BSD, valid_BL)[:, 0])
    expected_BA = model.head(torch.cat(features, dim=-1))
    torch.testing.assert_close(model.logits(batch.image_VBCHW, text_BL, valid_BL), expected_BA, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_the_loss_trains_everything_the_head_depends_on(task: str) -> None:
    model, batch = make(task)
    losses = model(batch)
    assert list(losses) == ["task"]
    losses["task"].backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert {name for name in idle if not name.endswith("key_value.bias")} <= {"vision.vit.patch_embed.mask_token"}


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_correct_answers_are_counted(task: str) -> None:
    model, batch = make(task)
    logits_BA = model.logits(batch.image_VBCHW, batch.text_TBL[0], batch.valid_TBL[0])
    guesses = logits_BA.argmax(-1).tolist()
    other = (guesses[2] + 1) % logits_BA.shape[1]
    label = batch.label_B if task == "vqa" else torch.tensor([guesses[0], guesses[1], other])
    metrics = MetricAccumulator()
    model(replace(batch, label_B=label), None, metrics)
    expected = sum(float(label[b, guess]) for b, guess in enumerate(guesses)) if task == "vqa" else 2.0
    assert (float(metrics.correct["task_accuracy"]), metrics.total["task_accuracy"]) == (pytest.approx(expected), B)


def test_the_order_of_a_pair_matters_and_padding_does_not() -> None:
    model, batch = make("nlvr2")
    text_BL, valid_BL = batch.text_TBL[0], batch.valid_TBL[0]
    logits_BA = model.logits(batch.image_VBCHW, text_BL, valid_BL)
    assert not torch.allclose(model.logits(batch.image_VBCHW.flip(0), text_BL, valid_BL), logits_BA, atol=1e-3)
    short_A = model.logits(batch.image_VBCHW[:, 2:], text_BL[2:, :3], valid_BL[2:, :3])
    torch.testing.assert_close(short_A, logits_BA[2:], rtol=1e-4, atol=1e-5)
