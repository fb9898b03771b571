"""CUDA graphs imitated on a CPU: what torch captures is recorded, operation by operation, and repeated on replay.

As on a GPU, a replay runs no Python of the model's, reads its arguments where they lay at capture and leaves its
results where they lay then; and nothing that is captured may return a value to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    """Replaces `torch.cuda.CUDAGraph`.

    Attributes:
        made: all graphs so far.
        replays: how often this one was replayed.
    """

    made: ClassVar[list[RecordedGraph]] = []

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.replays = 0
        self.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        with _disable_current_modes():  # they would count what is replayed
            for func, args, kwargs, known in self.calls:
                given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
                for old, new in zip(known, tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
                        old.copy_(new)


class Calls(TorchDispatchMode):
    """Counts the operations called within, except replayed ones.

    Attributes:
        launching: names of those that would give a GPU work.
        others: names of views and the like.
        replays: how many graphs were replayed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launching: list[str] = []
        self.others: list[str] = []
        self.replays = 0

    def __enter__(self) -> Calls:
        self.replays -= sum(graph.replays for graph in RecordedGraph.made)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.replays += sum(graph.replays for graph in RecordedGraph.made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        is_view = func.is_view or name.startswith(("profiler::", "aten::empty")) or name == "aten::detach"
        (self.others if is_view else self.launching).append(name)
        return result


@contextmanager
def graph(recorded: RecordedGraph, **_: Any) -> Iterator[None]:
    with recorded:
        yield


@contextmanager
def recording() -> Iterator[list[RecordedGraph]]:
    """Record on the CPU all graphs that torch captures within; yields them."""
    stand_ins = {
        "CUDAGraph": RecordedGraph,
        "graph": graph,
        "synchronize": lambda: None,
        "Stream": nullcontext,
        "stream": nullcontext,
    }
    RecordedGraph.made = []
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(torch.cuda.graphs, "graph_pool_handle", lambda: None))
        yield RecordedGraph.made
