"""None of our own code makes the host wait for the device between logged steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import deepspeed
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mvlm.batch import MetricAccumulator
from tests.conftest import ROOT
from tests.training.parity_worker import built, configuration, engine_of, steps_of

OURS = str(ROOT / "mvlm") + "/"
DEEPSPEEDS = str(Path(deepspeed.__file__).parent) + "/"

READING = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
"""Methods of a tensor that copy its values to the host."""
COPYING = {"tensor", "as_tensor", "from_numpy"}
"""Functions of torch that make a tensor in pageable memory of the host."""
COUNTING = {"nonzero", "_local_scalar_dense", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
"""ATen operations that wait for the device, since their result on the host or its shape depends on values."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


def owner(frame: FrameType | None, ours: str) -> str | None:
    """The innermost line of ours on the stack; None if a frame of DeepSpeed's lies further in."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(DEEPSPEEDS):
            return None
        if name.startswith(ours):
            return f"{name.removeprefix(str(ROOT) + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class Waits:
    """A context that collects the lines of ours that would wait for a GPU, and the calls that do so.

    Nothing waits on a CPU, so these calls are recognized by name. The function mode sees what Python calls on tensors;
    the dispatch mode sees what torch itself calls, also in the backward pass.
    """

    def __init__(self, ours: str = OURS) -> None:
        self.found: list[str] = []
        waits = self

        def note(name: str) -> None:
            if line := owner(sys._getframe(2), ours):
                waits.found.append(f"{line}: {name}")

        class Functions(TorchFunctionMode):
            def __torch_function__(
                self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
            ) -> Any:
                name, kwargs = getattr(func, "__name__", ""), kwargs or {}
                if name in READING | COPYING:
                    note(name)
                if name == "to" and sys._getframe(1).f_code.co_filename.startswith(ours):
                    devices = [x for x in (*args[1:], kwargs.get("device")) if isinstance(x, (str, torch.device))]
                    if devices and not kwargs.get("non_blocking"):
                        note("to")
                return func(*args, **kwargs)

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
                name = func.overloadpacket.__name__
                by_mask = name in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
                if name in COUNTING or by_mask or func is torch.ops.aten.repeat_interleave.Tensor:
                    note(name)
                return func(*args, **(kwargs or {}))

        self._modes = Functions(), Operations()

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.clone().masked_fill_(x > 0, 0).__setitem__(x > 1, torch.zeros(2)),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.repeat_interleave(x.long()),
    ],
)
def test_a_wait_is_found(wait: Callable[[torch.Tensor], Any]) -> None:
    with Waits(ours=__file__) as waits:
        wait(torch.arange(4.0))
    assert waits.found


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.to(x.device, non_blocking=True).to(torch.float64),
        lambda x: x[torch.arange(2)] + x[1:3],
        lambda x: x.masked_fill(x > 0, 0).clone().index_fill_(0, torch.arange(2), 1),
        lambda x: torch.where(x > 0, x, 0).argmax(),
    ],
)
def test_what_does_not_wait_is_not_found(work: Callable[[torch.Tensor], Any]) -> None:
    with Waits(ours=__file__) as waits:
        work(torch.arange(4.0))
    assert waits.found == []


KINDS = [(0, 1, "token"), *((stage, 2, "token") for stage in range(4)), (0, 2, "drop")]


@pytest.mark.parametrize(("stage", "accumulation", "masking"), KINDS)
def test_a_step_of_training_waits_for_nothing_in_our_code(
    one_rank: None, scenes: Path, stage: int, accumulation: int, masking: str
) -> None:
    # With two micro-batches, an ITM group spans both.
    switches = [f"objectives.image_masking={masking}", "objectives.itm_group=16"]
    config = configuration(str(scenes), 16 // accumulation, switches)
    model, loader = built(config, 0, 1)
    engine = engine_of(model, config, {"zero_optimization": {"stage": stage}}, 1)
    first, second, *_ = steps_of(loader)
    engine.step(first, 0.5, 0, MetricAccumulator())  # leaves some constants on the device
    with Waits() as waits:
        engine.step(second, 0.5, 1, MetricAccumulator())
    assert set(waits.found) == set()
