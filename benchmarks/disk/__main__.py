"""Two billion parameters on one CPU with the optimiser on a disk: python benchmarks/disk --folder DISK

Runs `mvlm train` with benchmarks/disk/two_billion.toml under ZeRO stage 3, and every half second records what its
process has in memory: anonymous memory, which must be available, and pages of mapped files, which the kernel can take
back. A line is added to results/steps.jsonl, with each step's loss. About 65 GB of disk space are used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
RESULTS = HERE / "results" / "steps.jsonl"
sys.path[0] = str(ROOT)

from benchmarks.kept import add_record, code_version  # noqa: E402

KINDS = ("RssAnon", "RssFile", "RssShmem", "VmRSS")


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folder", type=Path, help="a folder on the disk (default: TMPDIR)")
    words.add_argument("--json", type=Path, default=HERE / "zero3_disk.json", help="DeepSpeed's JSON")
    words.add_argument("overrides", nargs="*", help="overrides of two_billion.toml")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        line = measure(Path(folder), asked.json, asked.overrides)
    print(json.dumps(line, indent=1))
    add_record(RESULTS, line)
    return 0


def measure(folder: Path, deepspeed: Path, overrides: list[str]) -> dict[str, Any]:
    """Run it, and measure its memory, disk space and time.

    Raises:
        RuntimeError: the run failed; its own message is above.
    """
    shards, run = folder / "scenes", folder / "run"
    words = ["--task", "caption", "--count", "40", "--seed", "3", "--out", str(shards)]
    subprocess.run([sys.executable, "-m", "data_tools", "synth", *words], cwd=ROOT, check=True)
    environment = os.environ | {"TMPDIR": str(folder), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "mvlm", "train", str(HERE / "two_billion.toml")]
    command += ["--deepspeed_config", str(deepspeed), f"run.dir={run}", f"data.train={shards}", *overrides]
    free, least, since = shutil.disk_usage(folder).free, shutil.disk_usage(folder).free, time.monotonic()
    peaks, available = dict.fromkeys(KINDS, 0), memory_of("/proc/meminfo", ("MemAvailable",))["MemAvailable"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    while process.poll() is None:
        try:
            found = memory_of(f"/proc/{process.pid}/status", KINDS)
        except (FileNotFoundError, ProcessLookupError):
            break
        peaks = {kind: max(peaks[kind], found.get(kind, 0)) for kind in KINDS}
        available = min(available, memory_of("/proc/meminfo", ("MemAvailable",))["MemAvailable"])
        least = min(least, shutil.disk_usage(folder).free)
        time.sleep(0.5)
    if code := process.wait():
        raise RuntimeError(f"The run has ended with {code}.")
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]
    told = json.loads((run / "run.json").read_text())
    return {
        "parameters": told["parameters"],
        "deepspeed": json.loads(deepspeed.read_text()),
        "overrides": overrides,
        "peaks": peaks,
        "least memory available": available,
        "of the machine": memory_of("/proc/meminfo", ("MemTotal",))["MemTotal"],
        "disk": free - least,
        "seconds": round(time.monotonic() - since),
        "steps": steps,
        "commit": code_version(),
    }


def memory_of(file: str, kinds: tuple[str, ...]) -> dict[str, int]:
    """Bytes by kind."""
    lines = (line.split() for line in Path(file).read_text().splitlines())
    return {words[0][:-1]: 1024 * int(words[1]) for words in lines if words and words[0][:-1] in kinds}


if __name__ == "__main__":
    sys.exit(main())
