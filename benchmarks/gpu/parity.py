"""Every operation of mvlm/kernels, checked and timed: python benchmarks/gpu/parity.py FILE [--size full]

At the shapes of one micro-batch of a size of benchmarks/step, the result and gradients of each implementation that can
run here are compared, in fp32 and bf16, with those of the last one in float64: ‖found − exact‖ / ‖exact‖ must be at
most twice the plain implementation's in the same precision, or a tenth if the products are in fp8. Then forward and
backward are timed; a fused kernel's line also says what it should gain on an H100. There is one line for each, those of
updates.py for AdamW, and one for the losses of a whole step in bf16 with the implementations that a run chooses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import updates
from benchmarks.gpu.record import InFloat64, Line, Record, device, error_of, milliseconds, seconds_left, timed
from benchmarks.step.sizes import SIZES, Size, build, make_batch
from mvlm.batch import Batch, apply
from mvlm.estimate.cards import CARDS
from mvlm.kernels.dispatch import AUTO, Implementation, Op
from mvlm.kernels.layers import use_kernels
from mvlm.kernels.ops import OPS
from mvlm.kernels.packed_attention import Packed

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
FLOOR = {"fp32": 1e-6, "bf16": 1e-3}
"""Errors up to this are accepted, whatever the plain implementation's."""
CEILING = {"fp32": 1e-3, "bf16": 3e-2}
"""Errors above this are refused, whatever the plain implementation's."""
FP8 = {"torchao": 0.1}
"""Bounds for implementations that multiply in fp8: rounded to 3 bits, gradients to 2, a product is 4 to 6 % off."""
FEWER_PASSES = {"layer_norm": 2, "residual_norm": 5, "gelu_linear": 1}
"""Reads and writes of a bf16 tensor that our own kernels save, forward and backward (docs/performance.md). The one for
the sum of the bias before a GELU is left out: others leave that sum to the layer before."""
DIFFERENT_DRAWS = 0.01
"""Share of negatives that may differ in another precision."""
TIMES, SECONDS = 20, 1.0
WHOLE_STEP_PAIRS = 16


def cases(size: Size) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operations and arguments in fp32; if tensors require gradients, the backward pass is measured too."""
    with torch.device("meta"):
        model = build(size)
    batch = make_batch(size, model.grid).to(device())
    width, tokens, pairs, patch = model.vision.width, batch.patch_mask_BN.shape[1] + 1, len(batch), model.vision.patch
    generator = torch.Generator(device()).manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        made = torch.randn(*shape, device=device(), generator=generator)
        return (made * scale).requires_grad_()

    count = model.vision.vit.blocks[0].attn.num_heads
    depth = width // count
    image, text = (2 * pairs, count, tokens, depth), (2 * pairs, count, batch.text_BL.shape[1], depth)
    yield "attention", (random(*image), random(*image), random(*image))
    valid_B11L = batch.valid_BL.repeat(2, 1)[:, None, None]
    yield "attention", (random(*image), random(*text), random(*text), valid_B11L)
    starts = torch.cat(
        [batch.packing.starts[:1], *(batch.packing.starts[1:] + n * len(batch.packing.token_T) for n in (0, 1))]
    )
    packed = Packed.of(batch.packing.token_T, starts, batch.valid_BL, 2)
    T = 2 * len(batch.packing.token_T)
    yield "packed_attention", (*(random(T, count, depth) for _ in range(3)), packed)
    rows = 2 * pairs * tokens
    yield "layer_norm", (random(rows, width), random(width), random(width), 1e-6)
    yield "residual_norm", (*(random(rows, width) for _ in "ab"), random(width), random(width), 1e-6)
    yield "linear", (random(rows, width), random(4 * width, width, scale=width**-0.5), random(4 * width))
    yield "gelu_linear", (random(rows, 4 * width), random(width, 4 * width, scale=width**-0.5), random(width))
    patch_M = batch.patch_mask_BN.flatten().nonzero().flatten()
    colour = torch.full((3,), 0.5, device=device())
    pixels = random(len(patch_M), 3 * patch**2)
    for normalized in (False, True):
        yield "patch_l1", (pixels, batch.image_BCHW, patch_M, patch, colour, colour, normalized)
    image_BE, text_BE = (F.normalize(random(pairs, size.config.model.contrastive_width).detach(), dim=-1) for _ in "ab")
    temperature = torch.full((1,), 0.07, device=device())
    ids_B2 = torch.stack([batch.image_id_B, batch.caption_id_B], dim=1)
    lse_B = OPS["log_sum_exps"].implementations[-1].run(image_BE, text_BE, temperature, 0, ids_B2)
    for ids in (None, ids_B2):
        yield "log_sum_exps", (image_BE, text_BE, temperature, 0, ids)
        yield "contrastive", (image_BE, text_BE, temperature, 0, lse_B, lse_B, ids)
        group = size.config.objectives.group(pairs)
        yield "negatives", (image_BE, text_BE, temperature, batch.position_B, 0, group, 0, ids, False)


def in_precision(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The same numbers rounded to a precision, with separate gradients; without gradients they stay fp32 or float64."""

    def rounded(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.requires_grad:
            return value.detach().to(dtype).requires_grad_()
        return value.double() if dtype == torch.float64 else value

    return tuple(rounded(value) for value in arguments)


def outcome(run: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """The results, and the gradients for fixed random upstream gradients."""
    result = run(*arguments)
    results = list(result) if isinstance(result, tuple) else [result]
    wanted = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    if not wanted:
        return results
    generator = torch.Generator(device()).manual_seed(1)
    upstream = [torch.randn(x.shape, device=x.device, generator=generator).to(x.dtype) for x in results]
    return [*results, *torch.autograd.grad(results, wanted, upstream)]


def valid_part(found: list[Tensor], arguments: tuple[Any, ...]) -> list[Tensor]:
    """Leave out the padding of packed texts, which may have any values."""
    packed = next((a for a in arguments if isinstance(a, Packed)), None)
    return found if packed is None else list(packed.unpack(torch.stack(found)))


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    if not found[0].is_floating_point():
        return float((found[0] != exact[0]).double().mean())
    return max(error_of(a, b) for a, b in zip(found, exact, strict=True))


def measure(record: Record, op: Op, given: tuple[Any, ...]) -> None:
    """Add a line for each implementation and precision; if one cannot run, with the reason."""
    for precision, dtype in PRECISIONS.items():
        trial = Trial(op, in_precision(given, dtype), precision)
        for implementation in op.implementations:
            name = trial.named(implementation)
            if reason := op.why_not(implementation) or implementation.accepts(*trial.arguments):
                record.add(**name, cannot=reason)
            else:
                record.attempt(name, partial(trial.judge, implementation))


class Trial:
    """An operation's arguments in one precision, their exact results, and the plain implementation's error."""

    def __init__(self, op: Op, arguments: tuple[Any, ...], precision: str) -> None:
        self.op, self.arguments, self.precision = op, arguments, precision
        plain = op.implementations[-1].run
        # From the rounded arguments, so that only the operation's own error is measured.
        exactly = in_precision(arguments, torch.float64)
        with InFloat64():
            self.exact = valid_part(outcome(plain, exactly), exactly)
        self.plain_error = worst(valid_part(outcome(plain, arguments), arguments), self.exact)

    def named(self, one: Implementation) -> Line:
        shapes = [list(a.shape) for a in self.arguments if isinstance(a, Tensor)]
        name: Line = {"op": self.op.name, "implementation": one.name, "precision": self.precision, "shapes": shapes}
        return name | {"taken": one.name == self.op.first(*self.arguments).name}

    def judge(self, one: Implementation) -> Line:
        self.op.choose(one.name)
        try:
            return self._judged(one) | self._expected(one)
        finally:
            self.op.choose(AUTO)

    def _judged(self, one: Implementation) -> Line:
        error = worst(valid_part(outcome(one.run, self.arguments), self.arguments), self.exact)
        bound = min(max(2 * self.plain_error, FLOOR[self.precision]), CEILING[self.precision])
        bound = DIFFERENT_DRAWS if self.op.name == "negatives" else FP8.get(one.name, bound)
        times = timed(lambda: outcome(one.run, self.arguments), TIMES, SECONDS)
        return {"error": error, "bound": bound, "holds": error <= bound} | {"milliseconds": milliseconds(times)}

    def _expected(self, one: Implementation) -> Line:
        """Milliseconds that a fused kernel should gain on an H100, by its bytes at the full speed of the memory."""
        if one.name != "triton" or self.precision != "bf16" or self.op.name not in FEWER_PASSES:
            return {}
        moved = FEWER_PASSES[self.op.name] * self.arguments[0].nbytes
        return {"expected_gain_ms": round(1e3 * moved / CARDS["h100"].bandwidth, 4)}


def whole_step(size: Size) -> Line:
    """Losses in bf16 with the kernels that a run chooses, compared with plain passes in float64."""
    plain = build(size).to(device(), torch.float64)
    pairs = min(size.pairs, WHOLE_STEP_PAIRS)
    batch = make_batch(size, plain.grid, pairs).to(device())
    for name in ("fusion", "views"):
        OPS[name].choose("plain" if name == "fusion" else "apart")
    plain.text.packable = False
    with torch.no_grad():
        exact = {name: float(loss) for name, loss in plain(in_float64(batch)).items()}
    for name in ("fusion", "views"):
        OPS[name].choose("auto")
    del plain
    model = build(size).to(device(), torch.bfloat16)
    use_kernels(model)
    losses = model(batch)
    sum(losses.values()).backward()
    finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    found = {name: loss.item() for name, loss in losses.items()}
    error = max(abs(found[name] - exact[name]) / abs(exact[name]) for name in exact)
    return {"losses": found, "exact": exact, "error": error, "holds": finite and error < CEILING["bf16"]}


def in_float64(batch: Batch) -> Batch:
    return apply(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--size", choices=SIZES, default="full")
    arguments = words.parse_args()
    size, record = SIZES[arguments.size], Record(arguments.file)
    for name, values in cases(size):
        if seconds_left() < 5:
            record.add(op=name, failure="out of time")
            continue
        record.attempt({"op": name}, lambda op=OPS[name], values=values: measure(record, op, values))
    record.attempt({"op": "optimizer"}, lambda: updates.measure(record, size))
    record.attempt({"whole_step": size.name}, lambda: whole_step(size))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
