"""The fused elementwise kernels, compiled for an A100 and an H100, and what their memory traffic costs by the roofline.

python benchmarks/kernels/fused.py compiles each, which needs no GPU, and writes the table of docs/performance.md.
Nothing here measures time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kept import put_between
from mvlm.kernels import gelu_triton, layer_norm_triton

PAGE = Path(__file__).parents[2] / "docs/performance.md"
BEGIN, END = "<!-- benchmarks/kernels/fused.py -->\n\n", "\n\n<!-- end of fused.py -->"
CAPABILITIES = 80, 90
BANDWIDTH = 3.35e12
"""Bytes per second of an H100's memory, from its data sheet."""
WIDTH, ROWS = 768, 2 * 128 * 197
"""ViT-B/16: two views of 128 images in one pass."""
_BLOCK, _WARPS = layer_norm_triton.block_and_warps(WIDTH)


@dataclass(frozen=True)
class Kernel:
    """A kernel, and how much it has to move.

    Attributes:
        passes: bf16 numbers that it must read or write for each value of a row.
        separate: how many torch's own kernels read and write for the same result.
        extra: bytes per value that a program also moves, once for all its rows.
        absent: optional arguments that are left out.
        values: values of a row as a program holds it.
        warps, constants: how it is launched.
        size: values in all.
    """

    function: Any
    passes: int
    separate: int
    extra: float
    absent: tuple[str, ...] = ()
    values: int = _BLOCK
    warps: int = _WARPS
    constants: dict[str, Any] = field(default_factory=lambda: {"BLOCK": _BLOCK})
    size: int = ROWS * WIDTH


KERNELS = {
    "residual + layer norm, forward": Kernel(layer_norm_triton.normalize_rows, 4, 5, 4),
    "residual + layer norm, backward": Kernel(layer_norm_triton.differentiate_rows, 4, 8, 10),
    "layer norm, forward": Kernel(layer_norm_triton.normalize_rows, 2, 2, 4, ("branch",)),
    "layer norm, backward": Kernel(layer_norm_triton.differentiate_rows, 3, 5, 10, ("grad_sums",)),
    "GELU and bias, backward": Kernel(
        gelu_triton.differentiate_gelu,
        4,
        6,
        4 / gelu_triton.TILE["ROWS"],
        values=gelu_triton.TILE["ROWS"] * gelu_triton.TILE["COLUMNS"],
        warps=gelu_triton.WARPS,
        constants=gelu_triton.TILE,
        size=ROWS * 4 * WIDTH,
    ),
}
FP32 = ("means", "scales", "parts")
NUMBERS = ("width", "rows", "programs")


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled: int
    bytes_a_value: float


def build(kernel: Kernel, capability: int) -> Compiled:
    """Compile a kernel for bf16 and pointers aligned to 16 bytes, as torch's are."""
    names = kernel.function.arg_names
    constants = kernel.constants | dict.fromkeys(kernel.absent)
    kinds = dict.fromkeys(names, "*bf16") | dict.fromkeys(FP32, "*fp32") | dict.fromkeys(NUMBERS, "i32")
    kinds |= {"eps": "fp32"}
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] in "*i"}
    source = ASTSource(kernel.function, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": kernel.warps})
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", binary]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    moved = 32 * kernel.warps * moved_by_a_thread(compiled.asm["ptx"]) / kernel.values
    return Compiled(usage["REG"], usage["STACK"] + usage["LOCAL"], moved)


def moved_by_a_thread(ptx: str) -> int:
    """Bytes of a thread's vector accesses to GPU memory, each counted once; scalars, such as a row's mean, are not."""
    accesses = re.findall(r"(?:ld|st)\.global[.\w:]*?\.v(\d)\.b(\d+)", ptx)
    return sum(int(count) * int(bits) // 8 for count, bits in accesses)


def microseconds(kernel: Kernel, passes: int) -> float:
    """The least possible time, at the full bandwidth of an H100's memory."""
    return 1e6 * 2 * passes * kernel.size / BANDWIDTH


def table() -> str:
    lines = [
        "| kernel | registers, sm_80 and sm_90 | spilled | bytes a value, and the least | passes, and separately | "
        "least time, and separately |",
        "|---|---|---|---|---|---|",
    ]
    for name, kernel in KERNELS.items():
        a100, h100 = (build(kernel, capability) for capability in CAPABILITIES)
        lines.append(
            f"| {name} | {a100.registers}, {h100.registers} | {a100.spilled + h100.spilled} | "
            f"{h100.bytes_a_value - kernel.extra:g}, {2 * kernel.passes} | {kernel.passes}, {kernel.separate} | "
            f"{microseconds(kernel, kernel.passes):.0f}, {microseconds(kernel, kernel.separate):.0f} µs |"
        )
    return "\n".join([f"Compiled by Triton {triton.__version__}:", "", *lines])


def main() -> None:
    put_between(PAGE, BEGIN, END, table())


if __name__ == "__main__":
    main()
