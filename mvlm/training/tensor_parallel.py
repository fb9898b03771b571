"""Layers of transformer blocks split among the ranks of a replica (Shoeybi et al., "Megatron-LM", arXiv 1909.08053).

The first linear layers of an attention or a feed-forward are split by their outputs, so that each rank has some of the
heads or of the hidden features, and the last by its inputs: the ranks' results are summed, once for an attention and
once for a feed-forward, and so are the gradients at the inputs of these. Everything else is computed identically by
every rank, from equal weights, which have equal gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from mvlm.checkpoint.cut import Cut, cut_of
from mvlm.errors import UserError
from mvlm.kernels.attention import DispatchedAttention
from mvlm.kernels.gelu_linear import GeluLinear, gelu_linear
from mvlm.kernels.layers import RESIDUAL_OUTPUTS, use_kernels
from mvlm.kernels.linear import Linear, linear
from mvlm.model.fusion import Attention, FeedForward
from mvlm.runtime import replicas
from mvlm.training.zero.json_file import TENSOR_PARALLEL

BERT_ATTENTIONS = {name.replace("SelfOutput", "SelfAttention") for name in RESIDUAL_OUTPUTS if "SelfOutput" in name}


class SplitBranch(NamedTuple):
    """A unit that is split: an attention or a feed-forward.

    Attributes:
        owner: the module whose first arguments are the first layers' inputs.
        inputs: how many such arguments.
        first: layers, each with how many equal parts its output consists of, such as query, key and value.
        last: the layer that takes their results.
        sizes: modules and names of their attributes that scale with the heads, the number of heads first.
        units: how many heads or features; the ranks must divide it.
        dropped: the share of attention weights or hidden features that training drops.
    """

    owner: nn.Module
    inputs: int
    first: list[tuple[nn.Linear, int]]
    last: nn.Linear
    sizes: list[tuple[Any, str]]
    units: int
    dropped: float


def split_layers(model: nn.Module, ranks: int, place: int) -> None:
    """Leave this rank its part of each attention and feed-forward; those of unknown kinds stay whole.

    Args:
        model: whole; its kernels are exchanged if they have not been.
        ranks: of a replica; `place`: of this one among them.

    Raises:
        UserError: a number of heads or features does not divide, or dropout would be within what is split.
    """
    use_kernels(model)
    for name, branch in list(branches(model)):
        if branch.units % ranks:
            units = f"{branch.units} {'heads' if branch.sizes else 'hidden features'}"
            raise UserError(f"{TENSOR_PARALLEL} {ranks} does not divide the {units} of {name}: choose a divisor.")
        if branch.dropped:
            raise UserError(
                f"{TENSOR_PARALLEL} splits {name}, where dropout would draw the same for each rank's part: set "
                "model.dropout to 0; drop_path_rate in model.vision_args may stay."
            )
        branch.owner.register_forward_pre_hook(_Copying(branch.inputs))
        for layer, parts in branch.first:
            _cut_parameter(layer, "weight", Cut(parts, place, ranks), (layer.out_features // ranks, layer.in_features))
            if layer.bias is not None:
                _cut_parameter(layer, "bias", Cut(parts, place, ranks), (layer.out_features // ranks,))
            layer.out_features //= ranks
        last = branch.last
        shape = last.out_features, last.in_features // ranks
        _cut_parameter(last, "weight", Cut(last.out_features, place, ranks), shape)
        last.in_features //= ranks
        last.__class__ = _SummedGeluLinear if isinstance(last, GeluLinear) else _SummedLinear
        for module, size in branch.sizes:
            setattr(module, size, getattr(module, size) // ranks)


def branches(model: nn.Module) -> Iterator[tuple[str, SplitBranch]]:
    """The branches that can be split, or have been, by name."""
    module: Any
    for name, module in model.named_modules():
        if type(getattr(getattr(module, "attention", None), "self", None)).__name__ in BERT_ATTENTIONS:
            yield f"{name}.attention", _attention_of_bert(module.attention)
            yield f"{name}.output", _feed_forward(module.intermediate, module.intermediate.dense, module.output.dense)
        elif branch := _branch_of(module):
            yield name, branch


def _branch_of(module: Any) -> SplitBranch | None:
    """A module that is an attention or a feed-forward by itself, of a known kind."""
    if type(module) is DispatchedAttention and _is_plain(module):
        first = [(module.qkv, 3), *([(module.gate, 1)] if module.gate is not None else [])]
        sizes = [(module, "num_heads"), (module, "attn_dim")]
        return SplitBranch(module, 1, first, module.proj, sizes, module.num_heads, module.attn_drop.p)
    if isinstance(module, Attention):
        first = [(module.query, 1), (module.key_value, 2)]
        return SplitBranch(module, 2, first, module.out, [(module, "heads")], module.heads, module.dropout)
    if isinstance(module, Mlp) and isinstance(module.norm, nn.Identity) and isinstance(module.fc1, nn.Linear):
        return _feed_forward(module, module.fc1, module.fc2, getattr(module.drop1, "p", 0.0))
    return _feed_forward(module, module[0], module[2]) if isinstance(module, FeedForward) else None


def _attention_of_bert(attention: Any) -> SplitBranch:
    within = attention.self
    first = [(layer, 1) for layer in (within.query, within.key, within.value)]
    sizes = [(within, "num_attention_heads"), (within, "all_head_size")]
    heads, dropped = within.num_attention_heads, within.dropout.p
    return SplitBranch(within, 1, first, attention.output.dense, sizes, heads, dropped)


def _feed_forward(owner: nn.Module, first: Any, last: Any, dropped: float = 0.0) -> SplitBranch:
    return SplitBranch(owner, 1, [(first, 1)], last, [], last.in_features, dropped)


def _is_plain(attention: DispatchedAttention) -> bool:
    """Whether it has no norms over heads: each rank would have only part of the gradient of their weights."""
    return all(isinstance(norm, nn.Identity) for norm in (attention.q_norm, attention.k_norm, attention.norm))


def _cut_parameter(layer: nn.Linear, name: str, cut: Cut, shape: tuple[int, ...]) -> None:
    whole = getattr(layer, name)
    own: Any = Parameter(cut.taken_from(whole.detach()).view(shape).clone(), whole.requires_grad)
    own.cut, own.whole_shape = cut, tuple(whole.shape)
    own.model_parallel = True  # tells DeepSpeed to count it once for each rank
    setattr(layer, name, own)


class _Copying:
    """Has the gradients at a module's first arguments summed over ranks; if one is given twice, once."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        copies: dict[int, Tensor] = {}
        for x in given[: self._count]:
            if id(x) not in copies:
                copies[id(x)] = _Copy.apply(x)
        return *(copies[id(x)] for x in given[: self._count]), *given[self._count :]


class _Copy(torch.autograd.Function):
    """What all ranks have, and each uses in part: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return replicas.sum_within_(grad.clone(memory_format=torch.contiguous_format))


class _Sum(torch.autograd.Function):
    """The sum of what the ranks have, in place; each gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return replicas.sum_within_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _summed(x: Tensor, bias: Tensor | None) -> Tensor:
    if x._base is not None:  # as of oneDNN's product; autograd forbids changing a view that a Function has made
        x = x.clone()
    x = _Sum.apply(x)
    return x if bias is None else x + bias


class _SummedLinear(Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _summed(linear(input, self.weight, None), self.bias)


class _SummedGeluLinear(GeluLinear):
    def forward(self, input: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        x, *stand_in = input if isinstance(input, tuple) else (input,)
        return _summed(gelu_linear(x, self.weight, None, *stand_in), self.bias)


def clip_grad_norm(parameters: list[Parameter], limit: float) -> Tensor:
    """As torch's, which returns the norm before clipping, but over all ranks of the gradients that are split."""
    if replicas.size() == 1:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    split = [p.grad for p in parameters if p.grad is not None and cut_of(p).of > 1]
    alike = [p.grad for p in parameters if p.grad is not None and cut_of(p).of == 1]
    squares = replicas.sum_within_(torch.nn.utils.get_total_norm(split).square())
    norm = (squares + torch.nn.utils.get_total_norm(alike).square()).sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


class Mpu:
    """What DeepSpeed asks of a "model parallel unit" (deepspeed.initialize): the ranks of replicas, and of this one."""

    def get_data_parallel_group(self) -> Any:
        return replicas.group()

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [replicas.peer(replica) for replica in range(replicas.world())]

    def get_data_parallel_world_size(self) -> int:
        return replicas.world()

    def get_data_parallel_rank(self) -> int:
        return replicas.rank()

    def get_model_parallel_group(self) -> Any:
        return replicas.within()

    def get_model_parallel_world_size(self) -> int:
        return replicas.size()

    def get_model_parallel_rank(self) -> int:
        return replicas.place()
