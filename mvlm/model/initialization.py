"""A model's initial weights: each tensor is drawn by generators of its own, alone or with all others.

A model is built on torch's meta device, which takes no memory, while all that fills its tensors is recorded. The
initial value of a parameter is then made from its own record alone: in pieces of `PIECE` elements, each drawn by a
generator that is seeded by the run's seed, the parameter's name and the piece's number. So any part of any parameter
can be made by itself, and is bit for bit what the whole build has there, whatever the order of modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mvlm.model.init_record import DRAWING, InitRecord, StoragePart

PIECE = 32768
"""Elements that torch computes in one thread, so that no bit depends on the number of threads."""


class InitialWeights:
    """The initial values of every parameter and buffer of a model that was built under `recorded`.

    Args:
        seed: of the run.
    """

    def __init__(self, model: nn.Module, record: InitRecord, seed: int) -> None:
        self._model, self._record, self._seed = model, record, seed
        self._parts = {name: StoragePart.of(tensor) for name, _, _, tensor in _tensors(model) if tensor.is_meta}
        self._names = {part.storage: name for name, part in reversed(self._parts.items())}
        self._given: dict[int, Tensor] = {}
        self._written: dict[int, list[int]] = {}
        for number, operation in enumerate(record.operations):
            for storage in dict.fromkeys(part.storage for part in (*operation.changes, *operation.makes)):
                self._written.setdefault(storage, []).append(number)

    def give(self, parameter: nn.Parameter, tensor: Tensor) -> None:
        """Give one of the model's parameters, and copies of it, this initial value, which is read when it is needed."""
        self._given[StoragePart.of(parameter).storage] = tensor

    def materialize(self) -> None:
        """Give the model its tensors, on the CPU."""
        for _ in self.renewed(lambda name, parameter: nn.Parameter(self.whole(name), parameter.requires_grad)):
            pass

    def renewed(self, make: Callable[[str, nn.Parameter], nn.Parameter]) -> Iterator[tuple[str, nn.Parameter]]:
        """Replace each parameter of the model by what `make` returns, one after another, and make all else it has.

        Tied parameters stay tied, and come once, by the first of their names.
        """
        made: dict[int, nn.Parameter] = {}
        for name, module, key, tensor in list(_tensors(self._model)):
            if not tensor.is_meta:
                continue
            if not isinstance(tensor, nn.Parameter):
                setattr(module, key, self.whole(name))
                continue
            storage = self._parts[name].storage
            if storage not in made:
                made[storage] = make(name, tensor)
                setattr(module, key, made[storage])
                yield name, made[storage]
            setattr(module, key, made[storage])

    def whole(self, name: str) -> Tensor:
        """A parameter or buffer, on the CPU."""
        return self.piece(name, 0, self._parts[name].numel).view(self._parts[name].size)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` up to `stop` of the flattened parameter.

        No more of it is made if each element is made by itself, as in all that the encoders draw, even with rows that
        are refilled, such as padding's; otherwise the whole parameter is made, and what that is made from.
        """
        whole = self._parts[name]
        if whole.storage in self._given:
            return self._given[whole.storage].detach().flatten()[start:stop].to(whole.dtype, copy=True)
        title, operations = self._names[whole.storage], self._since_overwritten(whole)
        chain = [self._record.operations[number] for number in operations]
        spans = [span for operation in chain if (span := operation.span(whole)) is not None]
        if not whole.is_all_of(whole) or len(spans) < len(chain):
            return self._replayed(title, whole, operations).flatten()[start:stop].clone()
        found = torch.empty(stop - start, dtype=whole.dtype)
        for number in range(start // PIECE, -(-stop // PIECE)):
            first, last = number * PIECE, min(whole.numel, (number + 1) * PIECE)
            made = torch.zeros(last - first, dtype=whole.dtype)
            for place, (function, ((_, *args), kwargs), *_) in enumerate(chain):
                begin, end = max(first, spans[place].start), min(last, spans[place].stop)
                if function in DRAWING:
                    self._draw(function, made, args, kwargs, (title, place), number)
                elif begin < end:
                    function(made[begin - first : end - first], *args, **kwargs)
            low, high = max(start, first), min(stop, last)
            found[low - start : high - start] = made[low - first : high - first]
        return found

    def _since_overwritten(self, whole: StoragePart) -> list[int]:
        """The operations that make a tensor, without those that later ones overwrite."""
        numbers = self._written.get(whole.storage, [])
        overwriting = [n for n, number in enumerate(numbers) if self._record.operations[number].overwrites(whole)]
        return numbers[overwriting[-1] :] if overwriting else numbers

    def _replayed(self, title: str, whole: StoragePart, operations: list[int]) -> Tensor:
        """A tensor made from others, as it was recorded."""
        tensors: dict[int, Tensor] = {}
        needed, numbers = {whole.storage}, set(operations)
        pending = list(operations)
        while pending:
            for part in self._record.operations[pending.pop()].reads:
                if part.storage in needed:
                    continue
                needed.add(part.storage)
                if part.storage in self._names:
                    tensors[part.storage] = self.whole(self._names[part.storage]).flatten()
                elif more := set(self._written.get(part.storage, [])) - numbers:
                    numbers |= more
                    pending += more

        def real(leaf: Any) -> Any:
            if isinstance(leaf, torch.device):
                return torch.device("cpu")
            if not isinstance(leaf, StoragePart):
                return leaf
            if leaf.storage not in tensors:
                count = self._record.storages[leaf.storage].nbytes() // leaf.dtype.itemsize
                tensors[leaf.storage] = torch.zeros(count, dtype=leaf.dtype)
            return tensors[leaf.storage].as_strided(leaf.size, leaf.stride, leaf.offset)

        with torch.no_grad():
            for place, number in enumerate(sorted(numbers)):
                operation = self._record.operations[number]
                args, kwargs = tree_map(real, operation.arguments, is_leaf=lambda leaf: isinstance(leaf, StoragePart))
                found = self._call(operation.function, args, kwargs, (title, place))
                made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)] if operation.makes else []
                for part, tensor in zip(operation.makes, made, strict=bool(operation.makes)):
                    real(part).copy_(tensor)
        return real(whole)

    def _call(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], place: tuple[str, int]) -> Any:
        if function in DRAWING:
            target, *rest = args
            flat = torch.empty(target.numel(), dtype=target.dtype)
            for number, piece in enumerate(flat.split(PIECE)):
                self._draw(function, piece, rest, kwargs, place, number)
            return target.copy_(flat.view(target.shape))
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self._seed, *place))
            return function(*args, **kwargs)

    def _draw(
        self, function: Any, target: Tensor, args: Any, kwargs: dict[str, Any], place: tuple[str, int], piece: int
    ) -> None:
        generator = torch.Generator().manual_seed(_seed(self._seed, *place, piece))
        DRAWING[function](target, *args, **kwargs | {"generator": generator})


def _seed(*of: int | str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, of)).encode()).digest()[:8])


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Parameters, buffers and other tensors of a model's modules: name, module, name there, tensor.

    A tied one comes once for each of its names.
    """
    for module_name, module in model.named_modules():
        for key, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
            if isinstance(value, Tensor):
                yield f"{module_name}.{key}" if module_name else key, module, key, value
