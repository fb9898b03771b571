"""The contrastive gradient of a global batch cut up in any way, against the formula on the whole of it in float64."""

import pytest
import torch

from mvlm.batch import Encoded, GlobalBatch
from mvlm.kernels.contrastive import temperature_gradient
from mvlm.model.losses.itc import gather_features, itc_loss

G, WIDTH = 12, 8
image_id, caption_id = torch.arange(G), torch.arange(G)
image_id[7], caption_id[9] = 2, 5


def whole_in_float64(image: torch.Tensor, text: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Mean over pairs and directions of log sum exp(other pairs) - own pair, no pair its duplicates' negative."""
    total = temperature.new_zeros(())
    for i in range(G):
        same = (image_id == image_id[i]) | (caption_id == caption_id[i])
        kept = ~same | (torch.arange(G) == i)
        for scores in (image[i] @ text.T / temperature, text[i] @ image.T / temperature):
            total = total + torch.logsumexp(scores[kept], 0) - scores[i]
    return total / (2 * G)


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 12])
def test_parts_averaged_have_the_gradient_of_the_whole(parts: int) -> None:
    generator = torch.Generator().manual_seed(parts)
    inputs = [torch.randn(G, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]
    weight, temperature = (
        torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64),
        torch.tensor(0.2).double(),
    )

    def features(weight: torch.Tensor, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = (torch.nn.functional.normalize(x[rows].to(weight.dtype) @ weight, dim=-1) for x in inputs)
        return image, text

    exact = weight.clone().requires_grad_(), temperature.clone().requires_grad_()
    expected = whole_in_float64(*features(exact[0]), exact[1])
    expected.backward()

    ours = weight.float().requires_grad_(), temperature.float().reshape(1).requires_grad_()
    size, value = G // parts, 0.0
    everything = Encoded(*(x.detach() for x in features(ours[0])), image_id, caption_id)
    whole = gather_features([everything], [0], ours[1], True)
    for start in range(0, G, size):
        rows = slice(start, start + size)
        pool = GlobalBatch(lambda own, t: whole, start, parts, *torch.ones(3))
        loss = itc_loss(Encoded(*features(ours[0], rows), image_id[rows], caption_id[rows]), ours[1], pool)
        value += loss.item() / parts
        (loss / parts).backward()  # as accumulation and data parallelism do
    assert value == pytest.approx(expected.item(), rel=1e-5)
    for found, wanted in zip(ours, exact, strict=True):
        assert found.grad is not None and wanted.grad is not None
        torch.testing.assert_close(found.grad.double().squeeze(), wanted.grad, rtol=1e-4, atol=1e-6)


def test_micro_batches_of_two_ranks_are_told_apart() -> None:
    """Rank 0's two micro-batches are the pairs 0-2 and 6-8 of the global batch, rank 1's the others."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(G, WIDTH, generator=generator) for _ in range(2))

    def part(start: int) -> Encoded:
        rows = slice(start, start + 3)
        return Encoded(image[rows], text[rows], image_id[rows], caption_id[rows])

    temperature = torch.tensor([0.5])
    alone = gather_features([Encoded(image, text, image_id, caption_id)], [0], temperature, True)
    of_rank_1 = []  # in the order that rank 0 asks for it
    for name in ("image_BE", "text_BE", "image_id_B", "caption_id_B"):
        of_rank_1 += [getattr(part(start), name) for start in (3, 9)]
    of_rank_1 += [alone.lse_G2[start : start + 3] for start in (3, 9)]
    its_images = [
        temperature_gradient(image[s : s + 3], text, temperature, s, alone.lse_G2, alone.ids_G2) for s in (3, 9)
    ]
    of_rank_1 += [sum(its_images).reshape(1)]
    found = gather_features(
        [part(0), part(6)], [0, 6], temperature, True, lambda own: torch.cat([own, of_rank_1.pop(0)])
    )
    for name in ("image_GE", "text_GE", "ids_G2", "lse_G2", "temperature_gradient"):
        torch.testing.assert_close(getattr(found, name), getattr(alone, name))
