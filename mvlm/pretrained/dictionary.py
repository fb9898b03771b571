"""A patch dictionary made from a corpus's own pictures: k-means on whitened patches (Coates, Ng and Lee 2011)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.model.dictionary import EVEN, SIDE, PatchDictionary

SAMPLES = 40_000
"""Patches drawn from the pictures."""

ROUNDS = 10
"""Iterations of k-means."""

WHITENING = 0.1
"""Added to the variances of principal components, so that whitening does not amplify noise."""

BATCH = 64


@torch.no_grad()
def fit_dictionary(image_NCHW: Tensor, patches: int = 256) -> PatchDictionary:
    """The dictionary of pictures, uint8 NCHW; of even ones it has only the colours."""
    generator = torch.Generator().manual_seed(0)
    pixels_NCHW = (image_NCHW.float() / 255 - 0.5) / 0.5
    patch_SQ, is_even_S = _normalized(_patches(pixels_NCHW, generator))
    mean_Q = patch_SQ.mean(0)
    axes_QQ, variance_Q, _ = torch.linalg.svd((patch_SQ - mean_Q).T @ (patch_SQ - mean_Q) / len(patch_SQ))
    whiten_QQ = (axes_QQ / (variance_Q + WHITENING).sqrt()) @ axes_QQ.T
    white_SQ = (patch_SQ - mean_Q) @ whiten_QQ
    words_KQ = _centres(white_SQ if is_even_S.sum() > SAMPLES - patches else white_SQ[~is_even_S], patches, generator)
    dictionary = PatchDictionary(patches)
    dictionary.filters.copy_((words_KQ @ whiten_QQ).view_as(dictionary.filters))
    dictionary.bias.copy_(-words_KQ @ (mean_Q @ whiten_QQ))
    described = [dictionary.described(pixels).transpose(0, 1).flatten(1) for pixels in pixels_NCHW.split(BATCH)]
    deviation_F, mean_F = torch.std_mean(torch.cat(described, dim=1), dim=1)
    dictionary.mean.copy_(mean_F)
    dictionary.scale.copy_(1 / (deviation_F + 0.1 * deviation_F.mean() + 1e-6))  # what hardly varies stays small
    return dictionary


def _patches(pixels_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Patches from random places -> SQ, each as channels, rows, columns."""
    images, _, height, width = pixels_NCHW.shape

    def drawn(below: int) -> Tensor:
        return torch.randint(below, (SAMPLES,), generator=generator)

    image_S, row_S, column_S = drawn(images), drawn(height - SIDE + 1), drawn(width - SIDE + 1)
    along = torch.arange(SIDE)
    rows_Sp1, columns_S1p = (row_S[:, None] + along)[:, :, None], (column_S[:, None] + along)[:, None, :]
    patch_SppC = pixels_NCHW[image_S[:, None, None], :, rows_Sp1, columns_S1p]
    return patch_SppC.permute(0, 3, 1, 2).flatten(1)


def _normalized(patch_SQ: Tensor) -> tuple[Tensor, Tensor]:
    """Patches normalised in brightness and contrast, and which of them are even."""
    variance_S1 = patch_SQ.var(dim=1, keepdim=True)
    normalized_SQ = (patch_SQ - patch_SQ.mean(dim=1, keepdim=True)) / (variance_S1 + EVEN**2).sqrt()
    return normalized_SQ, variance_S1[:, 0] <= EVEN**2 / 4


def _centres(white_SQ: Tensor, patches: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means, in which a patch and its negative count as one -> KQ, of length 1."""
    first = torch.randperm(len(white_SQ), generator=generator)[:patches]
    centre_KQ = F.normalize(white_SQ[first], dim=1)
    for _ in range(ROUNDS):
        alike_SK = white_SQ @ centre_KQ.T
        nearest_S = alike_SK.abs().argmax(dim=1)
        sign_S1 = alike_SK.gather(1, nearest_S[:, None]).sign()
        sum_KQ = torch.zeros_like(centre_KQ).index_add_(0, nearest_S, white_SQ * sign_S1)
        is_empty_K1 = sum_KQ.norm(dim=1, keepdim=True) == 0
        centre_KQ = F.normalize(torch.where(is_empty_K1, centre_KQ, sum_KQ), dim=1)
    return centre_KQ
