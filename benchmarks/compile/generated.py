"""What torch's compiler makes of a step's blocks for an H100, without a GPU: python benchmarks/compile/generated.py

    python benchmarks/compile/generated.py --parts vision        # a ViT's blocks; step: all of them

A step's forward pass runs on tensors without values. What autograd traces on the CPU is moved to a pretended H100, for
which inductor writes the code of every run of blocks, forward and backward; nothing runs it. The Triton kernels in
that code are then compiled for sm_90, in the configuration that inductor would try first. A part is kept as
results/generated-PART.json and skipped if that exists, so that the command can be interrupted and repeated; the table
is written into README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_map
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.compile.releases import README, RESULTS
from benchmarks.kept import code_version, put_between
from benchmarks.step.sizes import SIZES, Size, build, make_batch
from benchmarks.step.variants import speed_up
from mvlm.batch import apply
from mvlm.data.samples.captions import COARSE
from mvlm.kernels.attention import attention
from mvlm.kernels.dispatch import anything, here
from mvlm.kernels.gelu_linear import gelu_linear
from mvlm.kernels.linear import linear
from mvlm.kernels.packed_attention import PACKED_ATTENTION
from mvlm.kernels.views import Views
from mvlm.training import compilation

PARTS = "vision", "step"
BEGIN, END = "<!-- generated -->\n\n", "\n\n<!-- end of generated -->"
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
)
TARGET = GPUTarget("cuda", 90, 32)


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """Call the kernel that torch, by asking the device, would choose for these shapes on an H100."""
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    shape = *query.shape[:3], key.shape[2]
    bias = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device).masked_fill(~attn_mask, float("-inf"))
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias.expand(shape), True)[0]


def fitted(into: Tensor, source: Tensor, *_: Any) -> Tensor:
    """Replaces `copy_`, which wants a CUDA context even if neither tensor has values; checks the shapes."""
    source.expand(into.shape)
    return into


@contextmanager
def an_h100() -> Iterator[None]:
    """Within, inductor and Triton believe that there is one."""
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for owner in (CudaInterface, CudaInterface.Worker):
            put(owner, "get_device_properties", staticmethod(lambda *_: H100))
            put(owner, "current_device", staticmethod(lambda: 0))
        put(CudaInterface, "is_available", staticmethod(lambda: True))
        put(CudaInterface, "get_compute_capability", staticmethod(lambda *_: 90))
        put(CudaInterface, "is_bf16_supported", staticmethod(lambda *_, **__: True))
        put(torch.cuda, "get_device_properties", lambda *_: H100)
        put(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        put(torch.cuda, "current_device", lambda: 0)
        put(torch.version, "cuda", torch.version.cuda or "13.0")
        put(torch.cuda, "synchronize", lambda *_: None)
        put(triton.runtime.driver, "_active", SimpleNamespace(get_current_target=lambda: TARGET))
        put(triton_helpers, "set_driver_to_gpu", lambda: None)
        put(Tensor, "copy_", fitted)
        put(compile_fx, "get_input_idxs_to_check", lambda *_: [])  # it would check addresses, and there are none
        stack.enter_context(torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1))
        yield


@contextmanager
def choices_of_a_gpu() -> Iterator[None]:
    """Within, tensors on the CPU are computed by the implementations that a run chooses on a GPU."""
    varlen = replace(PACKED_ATTENTION.implementations[0], probe=here, accepts=anything)
    with (
        mock.patch.object(PACKED_ATTENTION, "implementations", (varlen,)),
        mock.patch.object(PACKED_ATTENTION, "_probed", {}),
        mock.patch.object(attention, "choice", "sdpa"),
        mock.patch.object(linear, "choice", "torch"),
        mock.patch.object(gelu_linear, "choice", "kept"),
        mock.patch.object(F, "scaled_dot_product_attention", attend),
    ):
        yield


def moved(value: Any, device: str = "cuda:0") -> Any:
    """A tensor without values, or a device, moved to `device`; anything else as it is."""
    if isinstance(value, torch.device):
        return torch.device(device)
    if not isinstance(value, FakeTensor):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def on_the_gpu(graph: torch.fx.GraphModule, inputs: Any, **settings: Any) -> Any:
    """Inductor's code for a graph that was traced on the CPU, since autograd would look for the GPU while tracing."""
    for node in graph.graph.nodes:
        node.args, node.kwargs = (map_aggregate(part, moved) for part in (node.args, node.kwargs))
        if "val" in node.meta:
            node.meta["val"] = tree_map(moved, node.meta["val"])
    graph.recompile()
    return compile_fx.compile_fx_inner(graph, [moved(x) for x in inputs], **settings)


def written(graph: GraphLowering, source: str, sources: list[str]) -> ModuleType:
    """A stand-in for the module of a graph's code: its `call` returns results of the right shapes."""
    sources.append(source)
    results = graph.orig_gm.graph.output_node().args[0]
    values = [node.meta["val"] if isinstance(node, torch.fx.Node) else node for node in results]

    def call(given: list[Any]) -> list[Any]:
        given.clear()
        return [moved(value, "cpu") for value in values]

    module = ModuleType("generated")
    module.__file__ = "generated"
    module.call = call  # type: ignore[attr-defined]
    return module


def failed(_: Any, error: Exception) -> None:
    """Raise the error; a run would go on uncompiled."""
    raise error


def code_of(part: str, size: Size) -> list[str]:
    """The code of the graphs of each kind and size of block, forward and backward, in a whole step or an encoder."""
    sources: list[str] = []
    with torch.device("meta"):
        model = build(size)
    batch, mode = make_batch(size, model.grid, rounding=COARSE), FakeTensorMode(allow_non_fake_inputs=True)
    config, inductor = size.config, partial(compile_fx.compile_fx, inner_compile=on_the_gpu)
    with (
        mock.patch.object(torch, "compile", partial(torch.compile, backend=inductor)),
        mock.patch.object(
            GraphLowering, "_compile_to_module_lines", lambda graph, code: written(graph, code.value, sources)
        ),
        mock.patch.object(compilation._Compiler, "_fail", failed),
        an_h100(),
        mode,
    ):
        without_values(model)
        speed_up(model, replace(config, train=replace(config.train, compile=True)), kernels=True)
        with choices_of_a_gpu():
            given = apply(batch, mode.from_tensor)
            if part == "step":
                model(given)  # this generates the code of both passes
            else:
                model.vision.views(given, Views(True, True))
    return sources


def without_values(model: nn.Module) -> None:
    """Replace the model's tensors by ones on the CPU, in bf16; what is shared stays shared."""
    made: dict[Tensor, Tensor] = {}

    def put(x: Tensor) -> Tensor:
        if x not in made:
            made[x] = torch.empty_like(x, device="cpu", dtype=torch.bfloat16 if x.is_floating_point() else x.dtype)
        return made[x]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(put(parameter))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else put(buffer)


KERNEL = re.compile(
    r"^(\w+) = async_compile\.triton\('\w+', '{3}(.*?)'{3}, device_str='cuda'\)", re.MULTILINE | re.DOTALL
)


def kernels(sources: list[str]) -> dict[str, str]:
    """Names of the Triton kernels by their code, each kernel once."""
    return {code: name for source in sources for name, code in KERNEL.findall(source)}


def compiled(code: str, folder: Path) -> dict[str, int]:
    """The registers, spilled bytes and warps of a kernel, in the configuration that inductor would try first."""
    file = folder / "generated_kernel.py"
    file.write_text(code, encoding="utf-8")
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    tuner = next(value for value in vars(module).values() if type(value).__name__.endswith("Autotuner"))
    choice, meta, names = tuner.configs[0], tuner.triton_meta, tuner.fn.arg_names
    constants = {name: value for name, value in {**meta["constants"], **choice.kwargs}.items() if name in names}
    signature = {name: "constexpr" if name in constants else meta["signature"][name] for name in names}
    source = ASTSource(tuner.fn, signature=signature, constexprs=constants, attrs=meta["configs"][0])
    options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
    made = triton.compile(source, target=TARGET, options=options)
    binary = folder / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    told = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "-res-usage", binary], capture_output=True, text=True, check=True
    )
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told.stdout)}
    return {"registers": usage["REG"], "spilled": usage["STACK"] + usage["LOCAL"], "warps": choice.num_warps}


def found_in(sources: list[str]) -> dict[str, Any]:
    """Counts of graphs and kernels in the code, and of work that eager steps do more than once."""
    named = kernels(sources)
    return {
        "graphs": len(sources),
        "products": sum(len(re.findall(r"extern_kernels\.(?:mm|addmm|bmm|baddbmm)\(", source)) for source in sources),
        "kernels": len(named),
        "cat called": sum(
            len(re.findall(r"^[^#\n]*(?:ops\.aten|extern_kernels)\.cat\b", source, re.MULTILINE)) for source in sources
        ),
        "kernels that put together": sorted(
            name for name in named.values() if name.startswith("triton_poi_fused_cat_")
        ),
        "kernels with a GELU": sorted(name for code, name in named.items() if "libdevice.erf" in code),
    }


def table() -> str:
    """Markdown: a row for each part that has results."""
    heads = ("of size *full*", "torch, Triton", "graphs", "products", "Triton kernels", "most registers", "spilling")
    rows = ["| " + " | ".join((*heads, "with a GELU", "`cat` called", "`cat` in a kernel")) + " |", "|---" * 10 + "|"]
    for file in sorted(RESULTS.glob("generated-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        name, one = max(found["compiled"].items(), key=lambda item: item[1]["registers"])
        cells = [
            file.stem.partition("-")[2],
            f"{found['torch']}, {found['triton']}",
            found["graphs"],
            found["products"],
        ]
        cells += [len(found["compiled"]), f"{one['registers']} (`{name[4:]}`)"]
        cells += [sum(one["spilled"] > 0 for one in found["compiled"].values()), len(found["kernels with a GELU"])]
        cells += [found["cat called"], len(found["kernels that put together"])]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    words.add_argument("--code", type=Path, help="keep the code in this folder, to read it")
    arguments = words.parse_args()
    for part in arguments.parts:
        file = RESULTS / f"generated-{part}.json"
        if file.exists():
            continue
        sources = code_of(part, SIZES["full"])
        if arguments.code:
            arguments.code.mkdir(parents=True, exist_ok=True)
            for number, source in enumerate(sources):
                (arguments.code / f"{part}-{number:02}.py").write_text(source, encoding="utf-8")
        found: dict[str, Any] = {"commit": code_version(), "torch": torch.__version__, "triton": triton.__version__}
        found |= {**found_in(sources), "compiled": {}}
        with an_h100(), tempfile.TemporaryDirectory() as folder:
            for number, (code, name) in enumerate(kernels(sources).items()):
                found["compiled"][f"{number:03} {name}"] = compiled(code, Path(folder))
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put_between(README, BEGIN, END, table())


if __name__ == "__main__":
    main()
