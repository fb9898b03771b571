"""`train.micro_batch = "auto"`: the largest micro-batch that fits into memory, found by trial before a run begins.

A trial is the model's own forward and backward pass over pairs with the longest possible captions, twice, so that the
second finds gradients in place as accumulation does. On a GPU, the memory that ZeRO will hold besides is set aside
meanwhile, and the largest micro-batch that does not run out is taken. A CPU's memory is never filled: two small
micro-batches are measured and larger ones extrapolated, since memory grows with the pairs.
"""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mvlm.batch import Batch, Counts, Encoded, GlobalBatch, ItcGradients, LabelledBatch, Negative
from mvlm.checkpoint.description import RUN_JSON, described_in
from mvlm.config.schema import Objectives, Optim, Train
from mvlm.data.loading.collate import collate
from mvlm.data.samples.dataset import ShardDataset
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.losses.itc import Blocks, Peers, begin_contrast
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.runtime.cpu import available_memory
from mvlm.runtime.live_memory import LiveMemory
from mvlm.runtime.wording import counted
from mvlm.training.checkpoint.resume import Start
from mvlm.training.contrast import ranks_at_once
from mvlm.training.optim import count_parameters, muon_shapes
from mvlm.training.span import exchange_bytes, span_shape
from mvlm.training.zero.config import micro_batches
from mvlm.training.zero.divide import precision
from mvlm.training.zero.memory import States, Zero, states

MARGIN = 0.06
"""Share of a GPU's memory left for NCCL's buffers and fragmentation."""
HOST_SHARE = 0.8
"""Share of the memory available on a node that its ranks may take; loaders, files and other people need some too."""


def find_micro_batch(
    train: Train,
    objectives: Objectives,
    optim: Optim,
    model: Encoders,
    dataset: ShardDataset[Any],
    ds_config: dict[str, Any],
    start: Start,
) -> int:
    """The micro-batch for "auto", the same on all ranks; all must call.

    A resumed run keeps the number that it had, if the present ranks allow it.

    Raises:
        UserError: not even the smallest micro-batch fits on some rank.
    """
    allowed = micro_batches(train, dist.world())
    pairs = dist.broadcast_object(_remembered(start) if dist.rank() == 0 else None)
    if pairs not in allowed:
        trial = Trial(train, objectives, optim, model, dataset, ds_config)
        pairs = _on_gpu(trial, allowed) if dist.uses_cuda() else _on_cpu(trial, allowed)
    return int(pairs)


def _remembered(start: Start) -> int | None:
    """The number that "auto" found for the run that is resumed, if it did."""
    if not (start.checkpoint and start.resumes):
        return None
    try:
        facts = json.loads((described_in(start.checkpoint) / RUN_JSON).read_text(encoding="utf-8"))
        return int(facts["micro_batch"]) if facts["config"]["train"]["micro_batch"] == "auto" else None
    except (OSError, ValueError, TypeError, KeyError, UserError):  # run.json may have been edited: search again
        return None


class Trial:
    """A forward and backward pass over the longest pairs, by the model before DeepSpeed wraps it.

    Attributes:
        precision: what DeepSpeed will cast to.
    """

    def __init__(
        self,
        train: Train,
        objectives: Objectives,
        optim: Optim,
        model: Encoders,
        dataset: ShardDataset[Any],
        ds_config: dict[str, Any],
    ) -> None:
        self.global_batch, self.ema = train.global_batch, train.ema > 0
        self.objectives, self.model, self.dataset = objectives, model, dataset
        self.zero = Zero.of(ds_config)
        self.precision = precision(ds_config)
        self.parameters, self.matrices = count_parameters(model), muon_shapes(model, optim)

    def run(self, pairs: int) -> None:
        """Run both passes twice, as accumulation would; the gradients are freed afterwards."""
        device = dist.device()
        batch = longest_batch(self.dataset, pairs).to(device)
        pool = self._pool(batch, pairs)
        try:
            for _ in range(2):
                self.objectives.total(self.model(batch, pool)).backward()
        finally:
            self.model.zero_grad(set_to_none=True)

    def states(self, pairs: int) -> States:
        """What ZeRO will hold with this micro-batch."""
        accumulation = self.global_batch // (dist.world() * pairs)
        return states(self.parameters, self.zero, dist.world(), accumulation, self.matrices, self.ema)

    def beside(self, pairs: int) -> int:
        """Bytes that ZeRO will hold besides the weights and gradients of the trial."""
        held = self.states(pairs)
        all_of_it = held.weights + held.gradients + held.share + held.optimizer + held.buckets
        return max(0, int(all_of_it - 2 * self.parameters * self.zero.element)) + self._negatives(pairs)

    def _negatives(self, pairs: int) -> int:
        """Bytes of ITM's tokens in transit between ranks and micro-batches."""
        if not isinstance(self.model, MaskVLM) or not self.objectives.itm:
            return 0
        (rows, columns), text = self.model.grid, self.dataset.longest(0).text_L
        images = (rows * columns + 1) * self.model.vision.width * self.zero.element
        shape = span_shape(self.objectives.group(self.global_batch), dist.world(), pairs)
        return int(exchange_bytes(shape, pairs, (images, len(text) * self.model.text.width * self.zero.element)))

    def _pool(self, batch: Batch | LabelledBatch, pairs: int) -> GlobalBatch | None:
        """As if the global batch consisted of copies of the micro-batch."""
        if not isinstance(batch, Batch):
            return None
        parts, world = self.global_batch // pairs, dist.world()
        at_once = parts // world * ranks_at_once(self.global_batch, world, self.objectives.itc_exchange)

        def everybody(own: list[Tensor]) -> Blocks:
            return [(0, [x.repeat(at_once, *[1] * (x.ndim - 1)) for x in own])]

        def repeated(own: Encoded, temperature: Tensor, bias: Tensor | None) -> Callable[[], ItcGradients]:
            peers = Peers(everybody, count=parts)
            return begin_contrast(own, temperature, bias, self.objectives.exclude_duplicates, peers)

        def others(_: Encoded, __: Tensor, *own: Tensor) -> tuple[Negative, Negative]:
            image_BSD, text_BLD = (tokens.roll(1, 0) for tokens in own)
            return Negative(None, image_BSD), Negative(None, text_BLD, batch.valid_BL)

        assert isinstance(self.model, MaskVLM)
        counts = batch.patch_mask_BN.sum() * parts  # any will do: memory does not depend on denominators
        alone = self.model.alone(batch)
        negatives = alone.negatives if pairs % self.objectives.group(self.global_batch) == 0 else others
        return GlobalBatch(repeated, negatives, Counts(parts, alone.counts.counted_B3, counts, counts, counts))


def _on_gpu(trial: Trial, allowed: Sequence[int]) -> int:
    """The largest with which no rank runs out of memory."""
    device = dist.device()
    spare = int(MARGIN * torch.cuda.get_device_properties(device).total_memory)

    def attempt(pairs: int) -> None:
        set_aside = torch.empty(trial.beside(pairs) + spare, dtype=torch.uint8, device=device)
        trial.run(pairs)
        del set_aside

    with _placed(trial.model, device, trial.precision):
        pairs = first_that_fits(attempt, allowed)
    torch.cuda.empty_cache()
    return pairs


def first_that_fits(attempt: Callable[[int], None], allowed: Sequence[int]) -> int:
    """The largest micro-batch for which `attempt` runs out of memory on no rank; all ranks must call.

    Raises:
        UserError: there is none.
    """
    for pairs in reversed(allowed):
        if dist.all_agree(not _runs_out(attempt, pairs)):
            return pairs
    raise _nothing_fits(allowed[0])


def _runs_out(attempt: Callable[[int], None], pairs: int) -> bool:
    try:
        attempt(pairs)
        return False
    except torch.OutOfMemoryError:
        pass  # what the traceback refers to is only freed after this clause
    gc.collect()
    if dist.uses_cuda():
        torch.cuda.empty_cache()
    return True


def _on_cpu(trial: Trial, allowed: Sequence[int]) -> int:
    """The largest for which, judging by the two smallest, there is memory for every rank of a node at once."""
    hosts = dist.gather_objects(socket.gethostname())
    room = HOST_SHARE * available_memory() / hosts.count(socket.gethostname())
    smallest, next_one = allowed[0], allowed[min(1, len(allowed) - 1)]
    with _placed(trial.model, torch.device("cpu"), trial.precision):
        used, more = _measured(trial, smallest), _measured(trial, next_one)
    per_pair = (more - used) / max(1, next_one - smallest)
    weights = trial.parameters * trial.zero.element

    def needed(pairs: int) -> float:
        return used + per_pair * (pairs - smallest) + trial.beside(pairs) + weights

    feasible = [pairs for pairs in allowed if needed(pairs) <= room]
    pairs = min(dist.gather_objects(max(feasible, default=0)))
    if not pairs:
        raise _nothing_fits(allowed[0])
    return pairs


def _measured(trial: Trial, pairs: int) -> int:
    """Bytes at the peak, besides the weights."""
    with LiveMemory() as memory:
        trial.run(pairs)
    gc.collect()
    return memory.peak


def _nothing_fits(smallest: int) -> UserError:
    pairs = counted(smallest, "pair")
    return UserError(
        f'train.micro_batch = "auto": not even {pairs} fit into the memory of every rank: raise train.recompute or '
        "the ZeRO stage."
    )


@contextmanager
def _placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Keep the model's tensors on a device in a precision, and restore the original ones afterwards."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


def longest_batch(dataset: ShardDataset[Any], pairs: int) -> Batch | LabelledBatch:
    """A micro-batch of synthetic samples with texts of the greatest length."""
    samples = [dataset.longest(place) for place in range(pairs)]
    images_VBCHW = torch.zeros((dataset.image_shape[0], pairs, *dataset.image_shape[1:]), dtype=torch.uint8)
    return collate(samples, images_VBCHW, dataset.captions)
