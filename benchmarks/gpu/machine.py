"""The machine of the proof: python benchmarks/gpu/machine.py FILE adds one line to FILE.

It has names and versions, and two measured ceilings: bytes per second of a large copy, counting those read and those
written, and operations per second of a large bf16 product of random numbers.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.gpu.record import Line, Record, device, timed
from benchmarks.step.ladder import device_name

PACKAGES = ("torch", "triton", "transformers", "timm", "numpy", "deepspeed", "apex", "pyarrow", "tokenizers", "pytest")


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def ceilings() -> Line:
    """The measured ceilings; on a CPU, with sizes that take only a moment."""
    side, elements = (8192, 2**30) if torch.cuda.is_available() else (512, 2**22)
    a, b = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in "ab")
    source = torch.empty(elements, dtype=torch.uint8, device=device()).random_()
    target = torch.empty_like(source)
    return {
        "product_flops": 2 * side**3 / min(timed(lambda: a @ b, 10)),
        "copied_bytes_per_s": 2 * elements / min(timed(lambda: target.copy_(source), 10)),
    }


def main() -> int:
    record = Record(Path(sys.argv[1]))
    facts: Line = {"device": device_name(), "python": platform.python_version(), "cores": os.cpu_count()}
    facts |= {"cuda": torch.version.cuda, "versions": {name: version(name) for name in PACKAGES}}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"memory_bytes": properties.total_memory, "multiprocessors": properties.multi_processor_count}
    record.attempt({"machine": facts}, ceilings)
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
