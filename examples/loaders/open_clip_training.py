"""Train an open_clip model on shards, tars or Arrow files through mvlm's loader, with open_clip's own training loop.

    python open_clip_training.py "tars/*.tar" --epochs 2

Needs `pip install open_clip_torch`. The order is a shuffle of all pairs, the same on any number of ranks; the state
saved with the model resumes in the middle of an epoch.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip_train.data import DataInfo
from open_clip_train.train import train_one_epoch
from torchvision.transforms.v2.functional import normalize

from mvlm.data import CaptionLoader

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""A model that a CPU trains in a minute; for a real one, give `open_clip.create_model` its name."""

LOOP = SimpleNamespace(
    accum_freq=1,
    device="cpu",
    distill=False,
    distributed=False,
    grad_clip_norm=None,
    horovod=False,
    log_every_n_steps=10,
    precision="fp32",
    rank=0,
    local_rank=0,
    skip_scheduler=True,
    wandb=False,
    world_size=1,
)
"""The arguments of open_clip's command line that its loop reads."""


def main(words: list[str] | None = None) -> list[float]:
    """Train; returns the loss of one batch before training and after each epoch."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data")
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--batch", type=int, default=32)
    asked = arguments.parse_args(words)

    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL, output_dict=True)
    size, length = SMALL["vision_cfg"]["image_size"], SMALL["text_cfg"]["context_length"]
    mean, std = list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)

    def collate(images: torch.Tensor, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return normalize(images.float() / 255, mean, std), open_clip.tokenize(captions, length)

    loss = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with CaptionLoader(asked.data, batch=asked.batch, image_size=size, collate=collate) as loader:
        seen = next(iter(loader))
        found = [_loss(model, loss, seen)]
        loop = SimpleNamespace(**vars(LOOP), batch_size=asked.batch, epochs=asked.epochs)
        for epoch in range(asked.epochs):
            train_one_epoch(model, {"train": DataInfo(loader)}, loss, epoch, optimizer, None, None, None, loop)
            found.append(_loss(model, loss, seen))
        torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, "open_clip.pt")
    return found


@torch.no_grad()
def _loss(model: torch.nn.Module, loss: ClipLoss, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(loss(**model(*batch)))


if __name__ == "__main__":
    print(main())
