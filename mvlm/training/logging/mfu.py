"""How much of the device's capacity a run uses: executed floating point operations against the peak."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mvlm.batch import Batch, LabelledBatch
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.flops import Products, on_meta, without_values
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.runtime.log import log
from mvlm.training.parallelize import freeze
from mvlm.training.zero.fill import low_precision

PEAKS = (
    # by words of the name: bf16 or fp16, TF32, fp32; dense, in 1e12 a second, from the makers' data sheets
    ("B200", (2250.0, 1100.0, 75.0)),
    ("GH200", (989.0, 494.0, 67.0)),
    ("H200", (989.0, 494.0, 67.0)),
    ("H100 NVL", (835.0, 417.0, 60.0)),
    ("H100 PCIe", (756.0, 378.0, 51.0)),
    ("H100", (989.0, 494.0, 67.0)),
    ("H800", (989.0, 494.0, 67.0)),
    ("A100", (312.0, 156.0, 19.5)),
    ("A800", (312.0, 156.0, 19.5)),
    ("L40S", (362.0, 183.0, 91.6)),
    ("L4", (121.0, 60.0, 30.3)),
    ("A10", (125.0, 62.5, 31.2)),
    ("RTX 4090", (165.2, 82.6, 82.6)),
    ("RTX 3090", (71.0, 35.6, 35.6)),
    ("V100", (125.0, 15.7, 15.7)),
    ("T4", (65.0, 8.1, 8.1)),
)


def peak_flops(name: str, low_precision: bool, tf32: bool) -> float | None:
    """Dense matrix products' operations a second of a GPU by its name; None if it is not known.

    Args:
        low_precision: in bf16 or fp16; otherwise in fp32, by TF32's units or not.
    """
    for words, (half, tensor, single) in PEAKS:
        if re.search(rf"\b{words}\b", name):
            return 1e12 * (half if low_precision else tensor if tf32 else single)
    return None


@dataclass(frozen=True)
class Arithmetic:
    """What a run's pairs cost, and what its devices could do.

    Args:
        flops: of a micro-batch, forward and backward; None if they are not counted, as in fine-tuning.
        peak: operations a second of each rank's device; None if it is not known.
    """

    flops: Callable[[Batch], float] | None
    peak: float | None

    @classmethod
    def of(cls, model: Encoders, frozen: tuple[str, ...], ds_config: dict[str, Any]) -> Arithmetic:
        """To be called before DeepSpeed has the model, since it may divide the weights.

        Args:
            frozen: parts that keep their weights, whose gradients are not computed.
        """
        peak = None
        if dist.uses_cuda():
            tf32 = torch.get_float32_matmul_precision() != "highest"
            peak = peak_flops(torch.cuda.get_device_name(dist.device()), bool(low_precision(ds_config)), tf32)
        if not isinstance(model, MaskVLM):
            return cls(None, peak)
        counted = on_meta(model)
        freeze(counted, frozen)
        return cls(FlopsOfBatches(counted), peak)

    def metrics(self, micro_batches: Sequence[Batch | LabelledBatch], pairs_per_s: float) -> dict[str, float]:
        """`tflops`, executed a second by a rank, and `mfu`, their share of the peak; what is not known is absent.

        Args:
            micro_batches: this rank's of one step, which stand for the others; nothing but their shapes is read.
            pairs_per_s: of all ranks.
        """
        pairs = [batch for batch in micro_batches if isinstance(batch, Batch)]
        if self.flops is None or not pairs:
            return {}
        per_pair = statistics.fmean(self.flops(batch) / len(batch) for batch in pairs)
        if math.isnan(per_pair):
            return {}
        executed = per_pair * pairs_per_s / dist.world()
        return {"tflops": executed / 1e12} | ({"mfu": executed / self.peak} if self.peak else {})


TOKENS, MASKED = 1_000_003, 1_000_033
"""Primes, of which no other size of a model or batch is a multiple."""


@dataclass(frozen=True)
class _Cost:
    """Operations of a micro-batch: fixed ones, and those for each token and each masked token."""

    fixed: float
    token: float
    masked: float


class FlopsOfBatches:
    """Operations of a micro-batch's forward and backward pass.

    One batch is counted for each length that texts are padded to, with such numbers of tokens and of masked ones that
    the size of each product shows which of them it is computed for.

    Args:
        model: that nobody changes.
    """

    def __init__(self, model: MaskVLM) -> None:
        self._model = model
        self._costs: dict[tuple[int, ...], _Cost] = {}

    def __call__(self, batch: Batch) -> float:
        padded = len(batch), batch.text_BL.shape[1], batch.masked.token_BC.shape[1]
        if padded not in self._costs:
            self._costs[padded] = self._count(batch)
        cost = self._costs[padded]
        return cost.fixed + cost.token * len(batch.packing.token_T) + cost.masked * len(batch.masked.token_M)

    def _count(self, batch: Batch) -> _Cost:
        packing = replace(batch.packing, token_T=batch.packing.token_T.new_empty(1).expand(TOKENS))
        masked = replace(batch.masked, token_M=batch.masked.token_M.new_empty(1).expand(MASKED))
        batch = replace(batch, packing=packing, masked=masked)
        try:
            with without_values(self._model) as (model, without_value), Products() as products:
                sum(model(without_value(batch)).values()).backward()
        except (UserError, RuntimeError) as error:  # a new release of a library may do what has no count
            reason = str(error).partition("\n")[0].rstrip(".")
            log.warning(f"tflops and mfu are left out for texts of this length: {reason}.")
            return _Cost(math.nan, math.nan, math.nan)
        tokens, masked_ones = products.with_size(TOKENS), products.with_size(MASKED)
        return _Cost(products.total() - tokens - masked_ones, tokens / TOKENS, masked_ones / MASKED)
