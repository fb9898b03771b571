"""The contrastive gradient of a global batch cut up in any way, against the formula on the whole of it in float64."""

import pytest
import torch

from mvlm.batch import Encoded, Pool
from mvlm.objectives.itc import itc_loss, place

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
    with torch.no_grad():
        everything = Encoded(*features(ours[0]), image_id, caption_id)
    for rows in (slice(start, start + G // parts) for start in range(0, G, G // parts)):
        pool = Pool(lambda own: everything, rows.start, parts, torch.tensor(1), torch.tensor(1))
        own = Encoded(*features(ours[0], rows), image_id[rows], caption_id[rows])
        loss = itc_loss(place(own, pool), ours[1], True)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        (loss / parts).backward()  # as accumulation and data parallelism do
    for found, wanted in zip(ours, exact, strict=True):
        assert found.grad is not None and wanted.grad is not None
        torch.testing.assert_close(found.grad.double().squeeze(), wanted.grad, rtol=1e-4, atol=1e-6)
