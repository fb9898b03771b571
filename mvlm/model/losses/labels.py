"""The losses of tasks that choose among classes; A classes, B samples."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def answer_loss(logits_BA: Tensor, target_BA: Tensor) -> Tensor:
    """Binary cross-entropy of every class with its soft target, summed over classes, averaged over samples, in fp32.

    Each answer is right or wrong for itself, since several may be right. Source: Teney et al., "Tips and Tricks for
    Visual Question Answering" (arXiv 1708.02711), section 3.1; UNITER and ViLT sum over the answers as here.
    """
    total = F.binary_cross_entropy_with_logits(logits_BA.float(), target_BA, reduction="sum")
    return total / len(target_BA)


def label_loss(logits_BA: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy with the one class that is right, averaged over samples, in fp32."""
    return F.cross_entropy(logits_BA.float(), label_B)


def label_right(logits_BA: Tensor, label: Tensor) -> Tensor:
    """How right the class with the largest logit is, B: 0 or 1, or the answer's share if classes are answers."""
    guess_B = logits_BA.argmax(-1)
    return label.gather(1, guess_B[:, None])[:, 0] if label.ndim == 2 else guess_B == label
