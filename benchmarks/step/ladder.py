"""Rounds of trials, one process each, in which variants take turns; every trial is a line of a file, to which a later
call adds what is missing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.step.peers import ALBEF_CHECKOUT
from benchmarks.step.trial import OPTIMIZER

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
Line = dict[str, Any]


def device_name() -> str:
    """The processor that the trials run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in facts)}
    wanted = {"amx_bf16", "avx512_bf16", "avx512f", "avx2"} & set(named["flags"].split())
    cpu = f"{named['model name']}, family {named['cpu family']} model {named['model']}"
    return f"{cpu}, {', '.join(sorted(wanted))}"


def name_of(path: Path) -> str:
    """The name of a file of results in the README: its path among the results, without its suffix."""
    return os.path.relpath(path.with_suffix(""), RESULTS)


def read(path: Path) -> list[Line]:
    """The lines written so far, without an incomplete last one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def run(
    path: Path,
    size: str,
    variants: Iterable[str],
    precisions: Iterable[str],
    rounds: int,
    steps: int,
    albef: Path | None,
) -> None:
    """Measure what `path` does not have yet, and add it.

    On a CPU each variant's operations are counted once, in a separate process, so as not to affect memory.
    A trial that fails is a line with its error; it is not tried again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = {(line["variant"], line["precision"], line["round"]) for line in lines}
    variants, precisions = list(variants), list(precisions)
    counted = [] if torch.cuda.is_available() else [variant for variant in variants if variant != OPTIMIZER]
    trials = [(variant, "fp32", "count") for variant in counted]
    trials += [(v, p, n) for n in range(rounds) for p in precisions for v in variants]
    for variant, precision, number in trials:
        if (variant, precision, number) in done:
            continue
        options = ["--size", size, "--precision", precision, "--steps", str(steps)]
        found = _trial([variant, *options, *(["--count"] if number == "count" else [])], albef)
        line = {"variant": variant, "size": size, "precision": precision, "round": number} | _machine() | found
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{variant} {precision} {number}: {_brief(found)}", flush=True)


def _trial(words: list[str], albef: Path | None) -> Line:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if albef:
        environment[ALBEF_CHECKOUT] = str(albef.resolve())
    command = [sys.executable, str(FOLDER / "trial.py"), *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        return {"error": (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]}
    return json.loads(result.stdout.splitlines()[-1])


def _machine() -> Line:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": device_name(), "load": round(os.getloadavg()[0], 2)} | versions


def _brief(found: Line) -> str:
    if "error" in found:
        return found["error"]
    if "flops" in found:
        return f"{found['flops'] / 1e9:.2f} GF a pair"
    return ", ".join(f"{seconds:.3f} s" for seconds in found["seconds"])
