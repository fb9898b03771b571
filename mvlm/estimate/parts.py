"""The operations of each part of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mvlm.training.gradient_norms import part_of


class FlopsByPart:
    """Operations by part of the model, forward and backward.

    Backward goes through the graph in reverse, so that what runs once the gradient of a module's result is there
    belongs to that module.

    Attributes:
        part: the one to which what runs now belongs.
    """

    def __init__(self, counter: FlopCounterMode, model: nn.Module) -> None:
        self._counter, self.part = counter, "heads"
        self._flops: Counter[str] = Counter()
        for name, module in model.named_modules():
            enter = self._entering(part_of(name))
            if name:
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(self._leaving(enter))

    def until_now(self) -> Counter[str]:
        """Operations since counting began."""
        self._flops[self.part] += self._counter.get_total_flops() - self._flops.total()
        return self._flops.copy()

    def _entering(self, part: str) -> Callable[..., None]:
        def enter(*_: object) -> None:
            self.until_now()
            self.part = part

        return enter

    def _leaving(self, enter: Callable[..., None]) -> Callable[..., None]:
        def leave(module: nn.Module, given: object, result: object) -> None:
            if isinstance(result, Tensor) and result.requires_grad:
                result.register_hook(enter)

        return leave
