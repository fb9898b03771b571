"""How much each kind of work in a step has to compute and to move, and how long that should take on an H100.

    python benchmarks/kernels/roofline.py            # traces, writes results/roofline/step.json and the page
    python benchmarks/kernels/roofline.py --page     # writes the page from that file

The step of `full` (benchmarks/step), 128 pairs in bf16 on one GPU, runs forward and backward on tensors without values,
and every operation is recorded: eager, and with the fused kernels that have to be named. For a compiled step,
everything between two products or attentions counts as one kernel that reads and writes each tensor once: a lower
bound, which no compiler reaches. Nothing here measures time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu.full_step import FUSED
from benchmarks.kept import put_between, read_records
from benchmarks.step.sizes import SIZES, build, make_batch
from mvlm.estimate.cards import CARDS
from mvlm.estimate.parts import FlopsByPart
from mvlm.kernels.ops import OPS
from mvlm.model.flops import flop_counter, without_values

FOLDER = Path(__file__).parent
KEPT, PROFILE = FOLDER / "results/roofline/step.json", FOLDER.parent / "gpu/results/profile.jsonl"
PAGE = FOLDER.parents[1] / "docs/performance.md"
BEGIN, END = "<!-- benchmarks/kernels/results/roofline/step.json -->\n\n", "\n\n<!-- end of roofline -->"

H100 = CARDS["h100"]
PRODUCTS, ATTENTION, MEMORY = 0.62 * H100.bf16, 0.25 * H100.bf16, 0.80 * H100.bandwidth
"""Operations and bytes per second that an H100 is assumed to reach, as shares of the peaks in its data sheet."""
ADAMW_BYTES = 30
"""Per weight: fp32 weight and two moments read and written, fp32 gradient read, bf16 weight written."""
KINDS = {
    "products": {"addmm", "mm", "bmm", "baddbmm", "convolution", "convolution_backward"},
    "attention": {
        f"{name}{end}"
        for name in ("_scaled_dot_product_efficient_attention", "_varlen_attn", "_efficient_attention")
        for end in ("", "_forward", "_backward")
    },
    "GELU": {"gelu", "gelu_backward", "gelu_backward_"},
    "LayerNorm": {"native_layer_norm", "native_layer_norm_backward", "norm_rows", "norm_rows_backward"},
    "element-wise, as of residuals": {"add", "add_", "mul", "div", "sub", "where", "abs", "sgn", "neg"},
    "sums, as of bias gradients": {"sum", "mean"},
    "rows picked and put back": {"gather", "scatter_add", "index", "index_put", "index_select", "index_copy"}
    | {"embedding", "embedding_dense_backward"},
    "softmax and cross-entropy": {
        f"{name}{end}"
        for name in ("_log_softmax", "_softmax", "nll_loss")
        for end in ("", "_forward", "_backward", "_backward_data")
    },
    "copies": {"cat", "clone", "_to_copy", "copy_", "stack", "repeat", "constant_pad_nd", "fill_", "zero_"}
    | {"new_zeros", "zeros", "zeros_like", "ones_like", "select_backward", "slice_backward"},
}
"""Named as in benchmarks/gpu/by_kind.py; operations of no kind are "other"."""
WHOLE = ("products", "attention", "rows picked and put back")
"""Kinds that no compiler fuses with the operations around them."""
PICKED = {"gather", "index", "index_select", "embedding"}
UNREAD = {"new_zeros", "zeros_like", "ones_like", "new_full", "full_like"}
NOTHING = {"_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class Piece:
    """The part of a storage that an operation reads or writes."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Operation:
    kind: str
    part: str
    backward: bool
    flops: int
    moved: int
    given: list[Piece]
    made: list[Piece]

    @property
    def seconds(self) -> float:
        rate = ATTENTION if self.kind == "attention" else PRODUCTS
        return max(self.flops / rate, self.moved / MEMORY)


class Trace(TorchDispatchMode):
    """Records every operation that moves data. It keeps storages alive, since they are told apart by their addresses.

    It does not keep tensors: if anyone else held a gradient, autograd would copy it when accumulating.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.parts: FlopsByPart | None = None
        self.backward = False
        self._kept: list[Any] = []
        self._formulas = flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in NOTHING:
            return result
        given, made = ([x for x in tree_leaves(x) if isinstance(x, Tensor)] for x in ((args, kwargs), result))
        # For packed texts, whose lengths are unknown here, torch would count the longest; they are a few GFLOP.
        formula = None if name.startswith("_varlen") else self._formulas.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        part = self.parts.part if self.parts else ""
        moved = bytes_moved(func, name, args, given, made)
        pieces = [self._piece(x) for x in given], [self._piece(x) for x in made]
        self.operations.append(Operation(kind_of(name), part, self.backward, flops, moved, *pieces))
        return result

    def _piece(self, x: Tensor) -> Piece:
        storage = x.untyped_storage()
        self._kept.append(storage)
        return Piece(storage._cdata, x.storage_offset(), tuple(x.shape), bytes_of(x))


def kind_of(name: str) -> str:
    return next((kind for kind, names in KINDS.items() if name in names), "other")


def bytes_of(x: Tensor) -> int:
    """Bytes of a tensor; numbers repeated by a stride of 0 count once."""
    numbers = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        numbers *= length if stride or not length else 1
    return numbers * x.element_size()


def bytes_moved(func: Any, name: str, args: Any, given: list[Tensor], made: list[Tensor]) -> int:
    written = sum(map(bytes_of, made))
    if name in UNREAD:
        return written
    if name in PICKED:
        return 2 * written
    moved = sum(map(bytes_of, given)) + written
    if name == "native_layer_norm_backward":  # torch reads both once more for the weight's and the bias's gradients
        moved += bytes_of(args[0]) + bytes_of(args[1])
    if func.namespace == "mvlm":  # tensors written in place are not among the results
        changed = [x for x, of in zip(args, func._schema.arguments, strict=False) if of.alias_info is not None]
        moved += sum(map(bytes_of, changed))
    return moved


@contextmanager
def chosen(choices: dict[str, str]) -> Any:
    before = {name: OPS[name].choice for name in choices}
    try:
        for name, choice in choices.items():
            OPS[name].choice = choice
        yield
    finally:
        for name, choice in before.items():
            OPS[name].choice = choice


def trace(choices: dict[str, str], size_name: str = "full") -> tuple[list[Operation], int]:
    """A step's operations, and the number of weights that it trains."""
    step = SIZES[size_name]
    with torch.device("meta"):
        model = build(step)
    batch = make_batch(step, model.grid)
    with without_values(model, dtype=torch.bfloat16) as (fake, made), chosen(choices), Trace() as traced:
        traced.parts = FlopsByPart(flop_counter(), fake)
        loss = sum(fake(made(batch)).values())
        traced.backward = True
        loss.backward()
    return traced.operations, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def compiled(operations: list[Operation]) -> list[Operation]:
    """The same with everything between products, attentions and picked rows in one kernel that moves a tensor once.

    An operation's depth is the number of those on the longest path to it. Fused operations of the same depth and pass
    are one kernel, whose intermediate results are not moved.
    """
    depth: defaultdict[int, int] = defaultdict(int)
    made_by: dict[int, tuple[bool, int]] = {}
    readers: defaultdict[int, set[Any]] = defaultdict(set)
    places = []
    for number, one in enumerate(operations):
        joined = one.kind not in WHOLE
        own = max((depth[x.storage] for x in one.given), default=0)
        place = (one.backward, own) if joined else ("whole", number)
        places.append(place)
        for x in one.given:
            readers[x.storage].add(place)
        for x in one.made:
            depth[x.storage] = own + (not joined)
            made_by[x.storage] = place
    moved, seen = [], set()
    for one, place in zip(operations, places, strict=True):
        total = one.moved
        if one.kind not in WHOLE:
            total = 0
            for x in one.given:
                key = place, x.storage, x.offset, x.shape
                if made_by.get(x.storage) != place and key not in seen:
                    total += x.size
                    seen.add(key)
            for x in one.made:
                key = "written", x.storage
                if readers[x.storage] != {place} and key not in seen:
                    total += x.size
                    seen.add(key)
        moved.append(Operation(one.kind, one.part, one.backward, one.flops, total, one.given, one.made))
    return moved


def by_kind(operations: list[Operation]) -> dict[str, dict[str, float]]:
    found: dict[str, Counter[str]] = {kind: Counter() for kind in (*KINDS, "other")}
    for one in operations:
        found[one.kind] += Counter(operations=one.flops, bytes=one.moved, milliseconds=1e3 * one.seconds, calls=1)
    return {kind: dict(counts) for kind, counts in found.items()}


def measure() -> dict[str, Any]:
    eager, weights = trace({})
    fused, _ = trace({name: getattr(FUSED, name) for name in OPS if getattr(FUSED, name) != "auto"})
    joined = compiled(trace({"gelu_linear": "kept"})[0])
    ways = {"eager": by_kind(eager), "fused": by_kind(fused), "compiled": by_kind(joined)}
    adamw = {"operations": 0, "bytes": ADAMW_BYTES * weights, "milliseconds": 1e3 * ADAMW_BYTES * weights / MEMORY}
    for kinds in ways.values():
        kinds["optimizer"] = adamw
    epilogues = {
        part: {way: between_products(found, part) for way, found in (("eager", eager), ("fused", fused))}
        for part in ("image_decoder", "heads")
    }
    return {"torch": torch.__version__, "pairs": SIZES["full"].pairs, "ways": ways, "epilogues": epilogues}


def between_products(operations: list[Operation], part: str) -> dict[str, dict[str, float]]:
    return by_kind([one for one in operations if one.part == part and one.kind not in ("products", "attention")])


def milliseconds(kinds: dict[str, dict[str, float]]) -> float:
    return sum(counts.get("milliseconds", 0) for counts in kinds.values())


def table(kept: dict[str, Any]) -> str:
    """The page's tables from the stored results."""
    ways = kept["ways"]
    measured = {line["kind"]: line["milliseconds"] for line in read_records(PROFILE) if line.get("way") == "eager"}
    lines = [
        "| kind of work | TFLOP | GB, eager | expected ms, eager | with fused kernels | compiled, at least | "
        "measured ms, eager |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, counts in ways["eager"].items():
        times = [f"{ways[way][kind].get('milliseconds', 0):.1f}" for way in ("eager", "fused", "compiled")]
        work = f"{counts.get('operations', 0) / 1e12:.1f}" if counts.get("operations") else ""
        found = f"{measured[kind]:.1f}" if kind in measured else "not run"
        lines.append(f"| {kind} | {work} | {counts.get('bytes', 0) / 1e9:.1f} | {' | '.join(times)} | {found} |")
    lines.append("| communication, on one GPU | | 0.0 | 0.0 | 0.0 | 0.0 | not run |")
    totals = [f"**{milliseconds(ways[way]):.0f}**" for way in ("eager", "fused", "compiled")]
    whole = f"**{sum(measured.values()):.0f}**" if measured else "not run"
    flops, moved = (sum(counts.get(name, 0) for counts in ways["eager"].values()) for name in ("operations", "bytes"))
    lines.append(f"| **step** | **{flops / 1e12:.1f}** | **{moved / 1e9:.0f}** | {' | '.join(totals)} | {whole} |")
    pairs = [f"{1e3 * kept['pairs'] / milliseconds(ways[way]):,.0f}" for way in ("eager", "fused", "compiled")]
    lines.append(f"| pairs/s | | | {' | '.join(pairs)} | |")
    return "\n".join(
        [f"{kept['pairs']} pairs in bf16, traced on torch {kept['torch']}:", "", *lines, "", epilogues(kept)]
    )


def epilogues(kept: dict[str, Any]) -> str:
    """The work between and after the decoder's and the heads' products, as a share of the eager step."""
    lines = [
        "| between and behind the products of | GB, eager | expected ms, eager | of the step | with fused kernels | "
        "most of that |",
        "|---|---|---|---|---|---|",
    ]
    for part, ways in kept["epilogues"].items():
        eager, fused = ways["eager"], ways["fused"]
        moved = sum(counts.get("bytes", 0) for counts in eager.values()) / 1e9
        share = 100 * milliseconds(eager) / milliseconds(kept["ways"]["eager"])
        most = sorted(fused.items(), key=lambda item: -item[1].get("milliseconds", 0))[:3]
        named = ", ".join(f"{kind} {counts['milliseconds']:.2f}" for kind, counts in most)
        times = f"{milliseconds(eager):.2f} | {share:.1f} % | {milliseconds(fused):.2f}"
        lines.append(f"| {part.replace('_', ' ')} | {moved:.2f} | {times} | {named} |")
    return "\n".join(lines)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--page", action="store_true", help="only write the page, from the stored results")
    if not words.parse_args().page:
        KEPT.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    put_between(PAGE, BEGIN, END, table(json.loads(KEPT.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
