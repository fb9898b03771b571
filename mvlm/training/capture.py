"""The passes of a model as CUDA graphs: a few launches a step, however many kernels it has.

The two parts that run on the device alone are captured, from the batch to the encodings and from the fusion to the
losses: for each shape of its arguments, a part has one graph for its forward pass and another for its backward pass.
What involves other ranks stays between the parts: contrast, and negatives that may be elsewhere. To autograd, and so to
DeepSpeed, a captured part is one operation, whose parameters' gradients arrive like any others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mvlm.batch import Batch, Counts
from mvlm.errors import first_line
from mvlm.kernels.views import Views
from mvlm.model.encoders import Encoders
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.randomness import is_random
from mvlm.runtime import dist
from mvlm.runtime.log import log, rank_log

NOTHING: Any = None
SHAPES = 16
"""How many shapes of its arguments a part is captured for; with any others it runs uncaptured."""


def capture(model: Encoders) -> None:
    """Have a model's passes captured where they can be, and say why where they cannot."""
    if not dist.uses_cuda():
        reason = "without a GPU"
    elif not isinstance(model, MaskVLM):
        reason = "in fine-tuning"
    elif is_random(model):
        reason = "with dropout"
    else:
        capture_passes(model)
        return
    log.warning(f'train.compile = "captured" captures nothing {reason}: blocks are compiled.')


def capture_passes(model: MaskVLM) -> None:
    """Have the model's passes captured, on CUDA, as training meets the shapes of its batches.

    Evaluations, and passes without gradients, are not captured. Parameters must stay where they are in memory.
    """
    encode = _Captured(model.encode, [model.vision, model.text, model.image_projection, model.text_projection])
    readers = [model.cross_image, model.cross_text, model.image_decoder, model.mlm_head, model.match_head]
    fuse = _Captured(model.fuse, readers)

    def encode_views(batch: Batch, views: Views | None = None) -> Any:
        return encode(_encoded_of(batch), views)

    def fuse_streams(batch: Batch, images: Any, texts: Any, counts: Counts, _: bool) -> Any:
        # Always with metrics: another graph, for the steps that log, would hold the gradients a second time.
        return fuse(_fused_of(batch), images, texts, counts, True)

    model.encode = encode_views  # type: ignore[method-assign]
    model.fuse = fuse_streams  # type: ignore[method-assign, assignment]


UNREAD = "position_B", "image_id_B", "caption_id_B"
"""Fields of a batch that captured parts do not read, and that would otherwise make shapes of their own."""


def _encoded_of(batch: Batch) -> Batch:
    """What is encoded of a batch."""
    masked = replace(batch.masked, **dict.fromkeys(("patch_M", "token_BC", "token_M"), NOTHING))
    return replace(batch, masked=masked, **dict.fromkeys((*UNREAD, "target_BL"), NOTHING))


def _fused_of(batch: Batch) -> Batch:
    """What is read of it once it is encoded."""
    names = *UNREAD, "image_BCHW", "text_BL", "masked_text_BL", "packing"
    return replace(batch, **dict.fromkeys(names, NOTHING))


class _Captured:
    """A function of nested tensors, captured for the shapes that it is called with.

    Args:
        modules: those whose parameters it reads.
    """

    def __init__(self, run: Callable[..., Any], modules: Sequence[nn.Module]) -> None:
        self._run, self._modules = run, modules
        self._graphs: dict[Any, tuple[Any, tuple[Any, list[bool]], tuple[Tensor, ...]]] = {}
        self._failed = False

    def __call__(self, *args: Any) -> Any:
        if self._failed or not torch.is_grad_enabled() or not self._modules[0].training:
            return self._run(*args)
        tensors: list[Tensor] = []
        shape = flatten(args, tensors)
        key = shape, tuple((x.shape, x.stride(), x.dtype, x.requires_grad) for x in tensors)
        if key not in self._graphs:
            if len(self._graphs) == SHAPES:
                return self._run(*args)
            try:
                self._graphs[key] = self._capture(shape, tensors)
            except RuntimeError as error:  # running out of memory raises one
                self._failed = True
                reason = first_line(error)
                rank_log.warning(f"train.compile: a step cannot be captured here ({reason}), so none is.")
                return self._run(*args)
        replay, found, given = self._graphs[key]
        shape, differentiable = found
        replayed = replay(*_put_in_place(tensors, given))
        # To autograd, everything that is replayed has a gradient.
        outputs = [x if has else x.detach() for x, has in zip(replayed, differentiable, strict=True)]
        return rebuild(shape, outputs)

    def _capture(self, shape: Any, tensors: list[Tensor]) -> Any:
        """What replays it, what it returns, and the tensors that it was captured with."""
        part = _Part(self._run, self._modules, shape)
        given = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
        replay = torch.cuda.make_graphed_callables(part, given, allow_unused_input=True)
        return replay, part.found, given


def _put_in_place(tensors: list[Tensor], given: tuple[Tensor, ...]) -> list[Tensor]:
    """Copy tensors without a gradient into the captured ones, all of a dtype at once, and return those instead.

    torch copies the rest itself, one by one.
    """
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, tensor in zip(given, tensors, strict=True):
        if not tensor.requires_grad:
            places, those = pairs.setdefault(tensor.dtype, ([], []))
            places.append(place)
            those.append(tensor)
    for places, those in pairs.values():
        torch._foreach_copy_(places, those)
    return [x if x.requires_grad else place for place, x in zip(given, tensors, strict=True)]


class _Part(nn.Module):
    """The function as torch captures it: tensors in, tensors out, and the parameters it reads.

    Attributes:
        found: the shape of what the function returned, and which of its tensors have a gradient.
    """

    def __init__(self, run: Callable[..., Any], modules: Sequence[nn.Module], shape: Any) -> None:
        super().__init__()
        self._run, self._shape = run, shape
        self.found: tuple[Any, list[bool]] = None, []
        self.modules_read = nn.ModuleList(modules)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        shape = flatten(self._run(*rebuild(self._shape, tensors)), outputs)
        self.found = shape, [x.requires_grad for x in outputs]
        return tuple(outputs)


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A tensor's place among those of a flattened value."""

    number: int


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """The value with each tensor moved into the list and replaced by its slot; hashable. A tensor has only one slot."""
    if isinstance(value, Tensor):
        for number, known in enumerate(tensors):
            if known is value:
                return _Slot(number)
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = tuple((one.name, flatten(getattr(value, one.name), tensors)) for one in dataclasses.fields(value))
        return type(value), parts
    if isinstance(value, dict):
        return dict, tuple((name, flatten(one, tensors)) for name, one in value.items())
    if isinstance(value, tuple):
        return type(value), tuple(("", flatten(one, tensors)) for one in value)
    return value


def rebuild(shape: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse of `flatten`."""
    if isinstance(shape, _Slot):
        return tensors[shape.number]
    if not (isinstance(shape, tuple) and isinstance(shape[0], type)):
        return shape
    kind, parts = shape
    values = [(name, rebuild(part, tensors)) for name, part in parts]
    if not issubclass(kind, tuple):
        return kind(**dict(values))
    unnamed = [value for _, value in values]
    return tuple(unnamed) if kind is tuple else kind(*unnamed)
