"""Features that gloo ranks exchange, in blocks and by a ring, against the formula on the whole batch in float64."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
import torch.multiprocessing

from mvlm.batch import Encoded
from mvlm.model.losses.itc import begin_contrast
from mvlm.runtime import dist
from mvlm.training import contrast

SHARE, WIDTH = 6, 16


def whole_batch(pairs: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images, texts, temperature and bias in float64, and the image and caption of each pair; some pairs share one."""
    generator = torch.Generator().manual_seed(pairs)
    image, text = (torch.randn(pairs, WIDTH, generator=generator, dtype=torch.float64) for _ in "ab")
    sides = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text)]
    ids = torch.arange(2 * pairs).view(pairs, 2)
    ids[pairs - 1, 0], ids[SHARE, 1] = ids[0, 0], ids[1, 1]  # across ranks
    return [*sides, torch.tensor([0.2]).double(), torch.tensor([-1.0]).double()], ids


def formula(kind: str, inputs: list[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The sum over the pairs."""
    image, text, temperature, bias = inputs
    itself = torch.eye(len(image), dtype=torch.bool)
    left_out = (ids[:, None] == ids).any(-1) & ~itself
    scores = image @ text.T / temperature
    if kind == "sigmoid":
        right = torch.where(itself, torch.sigmoid(scores + bias), 1 - torch.sigmoid(scores + bias))
        return -right.log().masked_fill(left_out, 0).sum()
    scores = scores.masked_fill(left_out, float("-inf"))
    return (scores.logsumexp(0) + scores.logsumexp(1)).sum() / 2 - scores.diagonal().sum()


def on_rank(rank: int, ranks: int, meeting: str) -> None:
    store = torch_dist.FileStore(meeting, ranks)
    torch_dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    inputs, ids = whole_batch(ranks * SHARE)
    rows = slice(rank * SHARE, (rank + 1) * SHARE)
    image, text, temperature, bias = (x.float() for x in inputs)
    own = Encoded(image[rows], text[rows], *ids[rows].unbind(1))
    for kind in ("softmax", "sigmoid"):
        exact = [x.clone().requires_grad_() for x in inputs]
        total = formula(kind, exact, ids)
        wanted = torch.autograd.grad(total, exact, allow_unused=True)
        blocks = ((1 << 30, 0), (0, 1), (0, 2 * SHARE), (0, 5 * SHARE))
        for contrast.KEPT_BELOW, contrast.BLOCK, exchange in (*((*each, "blocks") for each in blocks), (0, 0, "ring")):
            peers = contrast.peers(ranks * SHARE, exchange)
            found = begin_contrast(own, temperature, bias if kind == "sigmoid" else None, True, peers)()
            close = {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(dist.all_reduce(found.loss_B.sum()).double(), total.detach(), **close)
            torch.testing.assert_close(found.at_image_BE.double(), wanted[0][rows], **close)
            torch.testing.assert_close(found.at_text_BE.double(), wanted[1][rows], **close)
            torch.testing.assert_close(found.at_temperature.double(), wanted[2].squeeze(), **close)
            if kind == "sigmoid":
                torch.testing.assert_close(found.at_bias.double(), wanted[3].squeeze(), **close)
    dist.close()


@pytest.mark.campaign
@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_every_rank_has_its_share_of_loss_and_gradients(ranks: int, tmp_path: Path) -> None:
    """tests/training/gradient_matrix.py tries two ranks in training steps."""
    meeting = str(tmp_path / "meeting")
    torch.multiprocessing.start_processes(on_rank, (ranks, meeting), nprocs=ranks, start_method="forkserver")
