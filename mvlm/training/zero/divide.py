"""Gives a model with shapes alone its weights under ZeRO stage 3, of which each rank keeps only its share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from mvlm.model.encoders import Encoders
from mvlm.model.initialization import InitialWeights
from mvlm.runtime import dist
from mvlm.training.zero.fill import low_precision
from mvlm.training.zero.start import import_deepspeed, replaced


def can_divide(model: Encoders, ds_config: dict[str, Any]) -> bool:
    """Whether a model can be given its weights in shares: not if they lie elsewhere than in the ranks' shares.

    Nor if frozen weights are rounded to 16 bits: their fp32 originals are kept too, and are taken from a whole model.
    """
    zero = ds_config["zero_optimization"]
    elsewhere = (
        int(zero.get("zero_hpz_partition_size") or 1) > 1,
        (zero.get("offload_param") or {}).get("device") == "nvme",
        bool(zero.get("zero_quantized_weights") or zero.get("zero_quantized_nontrainable_weights")),
    )
    rounds_frozen = precision(ds_config) != torch.float32 and any(not p.requires_grad for p in model.parameters())
    return zero["stage"] == 3 and not any(elsewhere) and not rounds_frozen


def precision(ds_config: dict[str, Any]) -> torch.dtype:
    """What the model computes in."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(low_precision(ds_config), torch.float32)


def divide(model: Encoders, weights: InitialWeights, ds_config: dict[str, Any]) -> None:
    """Give a model its weights, each rank its share of every parameter; only one parameter is whole at a time.

    All ranks must call.
    """
    deepspeed = import_deepspeed()
    dtype = precision(ds_config)
    # it would send every rank the first one's parameters, all of which are still empty
    with replaced(deepspeed.comm, "broadcast", lambda *_, **__: None):
        deepspeed.zero.Init(module=_OneByOne(weights, dtype), config_dict_or_path=ds_config, dtype=dtype)
    for module in model.modules():  # DeepSpeed moves only the parameters
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(dist.device())


@contextmanager
def kept_divided() -> Iterator[None]:
    """Keep DeepSpeed's optimiser of stage 3 from gathering parameters while it is constructed.

    It would gather each once to add the hook that reduces its gradients, which does not need the parameter's values.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    add_hooks = Stage3.create_reduce_and_remove_grad_hooks

    def without_gathering(optimizer: Any) -> None:
        with ExitStack() as stack:
            for parameter in (parameter for group in optimizer.fp16_groups for parameter in group):
                elsewhere = parameter.ds_zero_param_process_group is not None or parameter.nvme_swapper is not None
                if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE and not elsewhere:
                    for name in ("all_gather", "partition"):
                        stack.enter_context(replaced(parameter, name, lambda: None))
            add_hooks(optimizer)

    with replaced(Stage3, "create_reduce_and_remove_grad_hooks", without_gathering):
        yield


class _OneByOne(nn.Module):
    """To DeepSpeed a module, whose parameters are made only when it is about to divide them."""

    def __init__(self, weights: InitialWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self._weights, self._dtype = weights, dtype

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        for name, parameter in self._weights.renewed(self._empty):
            yield parameter
            self._fill(name, parameter)

    def _empty(self, name: str, parameter: Parameter) -> Parameter:
        empty = torch.empty(parameter.shape, dtype=self._dtype, device=dist.device())
        return Parameter(empty, parameter.requires_grad)

    def _fill(self, name: str, parameter: Any) -> None:
        """This rank's share, now that the parameter is divided."""
        own = parameter.ds_tensor
        start = own.ds_numel * dist.rank()
        stop = min(start + own.ds_numel, parameter.ds_numel)
        own.data.zero_()
        if start < stop:
            own.data[: stop - start] = self._weights.piece(name, start, stop)
