"""Has a model's layers computed by the operations of this package: classes are replaced, parameters and names stay.

Every parameter is still read inside the `forward` of the module that owns it, as ZeRO-3 requires.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import GELU as TimmGELU
from timm.layers import Mlp
from timm.layers.norm import LayerNorm as TimmLayerNorm
from timm.models.vision_transformer import Block
from torch import nn
from transformers.activations import GELUActivation

from mvlm.kernels.attention import use_attention
from mvlm.kernels.gelu_linear import GeluLinear, LinearBeforeGelu
from mvlm.kernels.layer_norm import LayerNorm, ResidualBlock, ResidualOutput
from mvlm.kernels.linear import Linear

RESIDUAL_OUTPUTS = {
    f"{family}{part}"
    for family in ("Bert", "Camembert", "Electra", "Ernie", "Roberta", "XLMRoberta")
    for part in ("SelfOutput", "Output")
}
"""Classes of transformers that are all alike: linear layer, dropout, and layer norm of the sum with a second input."""


def use_kernels(model: nn.Module) -> None:
    """Replace the classes of timm's attention layers, feed-forwards, layer norms and linear layers; idempotent."""
    use_attention(model)
    for first, between, second in list(_feed_forwards(model)):
        for owner, name in between:
            setattr(owner, name, nn.Identity())
        second.__class__ = GeluLinear
        if type(first) is nn.Linear:
            first.__class__ = LinearBeforeGelu
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) in (nn.LayerNorm, TimmLayerNorm) and _is_affine(module):
            module.__class__ = LayerNorm
    for module in model.modules():
        if type(module) is Block and type(module.norm2) is LayerNorm:
            module.__class__ = ResidualBlock
        elif type(module).__name__ in RESIDUAL_OUTPUTS and type(module.LayerNorm) is LayerNorm:
            module.__class__ = ResidualOutput


def _feed_forwards(model: nn.Module) -> Iterator[tuple[Any, list[tuple[Any, str]], Any]]:
    """Exact GELUs with nothing between them and the linear layer they feed.

    Yields the layer before, owner and name of the GELU and of any idle module after it, and the layer after.
    """
    module: Any
    found: tuple[Any, list[tuple[Any, str]], Any]
    for module in model.modules():
        if isinstance(module, Mlp):
            if not (_is_idle(module.drop1) and _is_idle(module.norm)):
                continue
            found = module.fc1, [(module, "act"), (module, "drop1")], module.fc2
        elif isinstance(module, nn.Sequential) and len(module) > 2:
            found = module[0], [(module, "1")], module[2]
        elif hasattr(module, "intermediate") and hasattr(module, "output"):  # transformers' BERT-like layers
            within = module.intermediate
            found = (
                getattr(within, "dense", None),
                [(within, "intermediate_act_fn")],
                getattr(module.output, "dense", None),
            )
        else:
            continue
        (owner, name), *_ = found[1]
        if _is_gelu(getattr(owner, name, None)) and type(found[2]) is nn.Linear:
            yield found


def _is_affine(norm: Any) -> bool:
    """Over one dimension, with weight and bias."""
    return len(norm.normalized_shape) == 1 and norm.weight is not None and norm.bias is not None


def _is_idle(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


def _is_gelu(module: nn.Module | None) -> bool:
    """The exact one: torch's, timm's or transformers' own."""
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    return isinstance(module, (TimmGELU, GELUActivation))
