"""The contrastive gradient of a global batch, however it is divided, compared with its formula in float64."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mvlm.batch import Encoded
from mvlm.model.losses.itc import Blocks, Peers, begin_contrast, itc_loss

G, WIDTH = 12, 8
image_id, caption_id = torch.arange(G), torch.arange(G)
image_id[7], caption_id[9] = 2, 5


def softmax_in_float64(image: Tensor, text: Tensor, temperature: Tensor, _: Tensor, excludes: bool) -> Tensor:
    """Mean over pairs and directions of log sum exp(scores) - own score; duplicates are not negatives of each other."""
    total = temperature.new_zeros(())
    for i in range(G):
        kept = kept_by(i, excludes)
        for scores in (image[i] @ text.T / temperature, text[i] @ image.T / temperature):
            total = total + torch.logsumexp(scores[kept], 0) - scores[i]
    return total / (2 * G)


def sigmoid_in_float64(image: Tensor, text: Tensor, temperature: Tensor, bias: Tensor, excludes: bool) -> Tensor:
    """SigLIP, algorithm 1: -sum log sigmoid(z (t x · y + b)) / n, one pair at a time."""
    total = temperature.new_zeros(())
    for i in range(G):
        for j in kept_by(i, excludes).nonzero().flatten().tolist():
            score = image[i] @ text[j] / temperature + bias
            total = total + torch.log1p(torch.exp(-score if i == j else score))
    return total / G


def kept_by(i: int, excludes: bool) -> Tensor:
    same = (image_id == image_id[i]) | (caption_id == caption_id[i])
    return ~same | (torch.arange(G) == i) if excludes else torch.ones(G, dtype=torch.bool)


FORMULAS = {"softmax": softmax_in_float64, "sigmoid": sigmoid_in_float64}


class Threads:
    """Ranks as threads of this process that exchange tensors through a list; a ring passes on one block at a time."""

    def __init__(self, ranks: int, ring: bool) -> None:
        self.ranks, self.ring = ranks, ring
        self.barrier, self.shown = threading.Barrier(ranks, timeout=20), [None] * ranks

    def exchange(self, rank: int, value: object) -> list:
        self.shown[rank] = value
        self.barrier.wait()
        everything = list(self.shown)
        self.barrier.wait()
        return everything

    def peers(self, rank: int) -> Peers:
        def circulate(own: list[Tensor]) -> Blocks:
            everybody = self.exchange(rank, own)
            if not self.ring:
                return [(rank * len(own[0]), [torch.cat(of_all) for of_all in zip(*everybody, strict=True)])]
            turns = [everybody[(rank - turn) % self.ranks] for turn in range(self.ranks)]
            return [(-len(own[0]) if turn else 0, block) for turn, block in enumerate(turns)]

        return Peers(circulate, lambda x: sum(self.exchange(rank, x)), self.ranks)

    def run(self, work: Callable[[int], object]) -> list:
        with ThreadPoolExecutor(self.ranks) as pool:
            return list(pool.map(work, range(self.ranks)))


LAYOUTS = [(1, 1, False), (1, 3, False), (2, 2, False), (2, 1, True), (2, 3, True), (3, 2, True), (6, 1, True)]
"""Ranks, micro-batches of each, and whether they form a ring."""


@pytest.mark.parametrize("excludes", [True, False])
@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize(("ranks", "micro_batches", "ring"), LAYOUTS)
def test_the_gradients_of_parts_average_to_that_of_the_whole(
    ranks: int, micro_batches: int, ring: bool, kind: str, excludes: bool
) -> None:
    generator = torch.Generator().manual_seed(ranks)
    inputs = [torch.randn(G, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]
    weight = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    start = (weight, torch.tensor([0.2]).double(), torch.tensor([-1.5]).double())

    def features(weight: Tensor, rows: slice | list[int] = slice(None)) -> tuple[Tensor, Tensor]:
        image, text = (torch.nn.functional.normalize(x[rows].to(weight.dtype) @ weight, dim=-1) for x in inputs)
        return image, text

    exact = [x.clone().requires_grad_() for x in start]
    expected = FORMULAS[kind](*features(exact[0]), exact[1], exact[2], excludes)
    expected.backward()

    threads, size = Threads(ranks, ring), G // (ranks * micro_batches)
    parts = ranks * micro_batches

    def loss_and_gradients(rank: int) -> tuple[float, list[Tensor]]:
        ours = [x.float().requires_grad_() for x in start]
        scale = ours[1], ours[2] if kind == "sigmoid" else None
        of_micro_batch = [
            list(range((m * ranks + rank) * size, (m * ranks + rank + 1) * size)) for m in range(micro_batches)
        ]
        own = [row for rows in of_micro_batch for row in rows]
        pairs = Encoded(*(x.detach() for x in features(ours[0], own)), image_id[own], caption_id[own])
        known = begin_contrast(pairs, *scale, excludes, threads.peers(rank))().split(micro_batches)
        value = 0.0
        for rows, contrast in zip(of_micro_batch, known, strict=True):
            pairs = Encoded(*features(ours[0], rows), image_id[rows], caption_id[rows])
            loss = itc_loss(pairs, *scale, contrast, parts)
            value += loss.item() / parts
            (loss / parts).backward()  # as accumulation and data parallelism do
        return value, [torch.zeros(1) if x.grad is None else x.grad for x in ours]

    found = threads.run(loss_and_gradients)
    assert math.fsum(value for value, _ in found) == pytest.approx(expected.item(), rel=1e-5)
    for of_ranks, wanted in zip(zip(*(gradients for _, gradients in found), strict=True), exact, strict=True):
        expected_gradient = torch.zeros(1).double() if wanted.grad is None else wanted.grad
        torch.testing.assert_close(sum(of_ranks).double(), expected_gradient, rtol=1e-4, atol=1e-6)
