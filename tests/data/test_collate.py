"""What the host computes so that no step has to wait for the device."""

import numpy as np
import pytest
import torch

from mvlm.batch import IGNORE
from mvlm.data.loading.collate import masked_places, pack
from mvlm.data.samples.captions import COARSE
from mvlm.data.samples.padding import pad


def test_masked_places_match_the_mask_and_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.stack([torch.randperm(16, generator=generator) < 10 for _ in range(6)])
    target = torch.full((6, 24), IGNORE)
    for row, count in enumerate((1, 5, 0, 9, 2, 1)):
        target[row, torch.randperm(24, generator=generator)[:count]] = torch.arange(count) + 7
    masked = masked_places(mask, target)
    assert masked.patch_BC.tolist() == [row.nonzero().flatten().tolist() for row in mask]
    assert masked.patch_M.tolist() == mask.flatten().nonzero().flatten().tolist()
    assert masked.token_BC.shape == (6, 12)  # 9, rounded up to a multiple of 4
    words = target.gather(1, masked.token_BC).flatten()[masked.token_M]
    assert words.tolist() == target[target != IGNORE].tolist()


def test_masked_places_of_texts_that_are_short_and_have_no_masked_tokens() -> None:
    masked = masked_places(torch.ones(2, 4, dtype=torch.bool), torch.full((2, 3), IGNORE))
    assert masked.token_BC.shape == (2, 3) and masked.token_M.numel() == 0


def test_images_with_different_numbers_of_masked_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 2\]"):
        masked_places(torch.tensor([[True, True, True], [True, True, False]]), torch.zeros(2, 3))


@pytest.mark.parametrize("count", [1, 7, 500])
def test_packing_lists_every_token_once_and_pads_little(count: int) -> None:
    lengths = torch.randint(1, 31, (count,), generator=torch.Generator().manual_seed(count))
    valid = torch.arange(32) < lengths[:, None]
    packing = pack(valid)
    total = int(lengths.sum())
    assert packing.token_T[:total].tolist() == valid.flatten().nonzero().flatten().tolist()
    assert packing.token_T[total:].tolist() == [valid.numel()] * (len(packing.token_T) - total)
    assert packing.starts.tolist() == [0, *lengths.cumsum(0).tolist(), len(packing.token_T)]
    assert len(packing.token_T) - total <= total / 32


def test_packing_rounds_numbers_of_tokens_to_at_most_32_lengths_per_doubling() -> None:
    lengths = {len(pack(torch.ones(1, total, dtype=torch.bool)).token_T) for total in range(513, 1025)}
    assert len(lengths) <= 32


def test_compiled_steps_get_few_sizes() -> None:
    rng = np.random.default_rng(0)
    texts = [np.arange(length) for length in rng.integers(5, 46, 64)]
    lengths = {pad(texts[:n], 1, 50, COARSE)[0].shape[1] for n in range(1, 65)}
    assert lengths <= {16, 32, 48, 50}
    for total in range(513, 1025):
        filled = len(pack(torch.ones(1, total, dtype=torch.bool), COARSE).token_T)
        assert filled % 64 == 0 and filled - total < total / 8
    target = torch.full((2, 40), IGNORE)
    target[0, :9] = 7
    assert masked_places(torch.ones(2, 4, dtype=torch.bool), target, COARSE).token_BC.shape == (2, 16)
