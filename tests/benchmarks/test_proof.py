"""The proof on a GPU: its page agrees with its results, and a failing part is recorded."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import page, parity
from benchmarks.gpu.parity import PRECISIONS
from benchmarks.gpu.record import Record
from benchmarks.kept import read_records
from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.linear import linear
from mvlm.kernels.ops import OPS
from tests.conftest import ROOT, run_command


def test_the_readme_agrees_with_the_results() -> None:
    text = page.README.read_text(encoding="utf-8")
    assert page.put(text, page.markdown(page.RESULTS)) == text


def test_each_command_of_the_readme_has_its_own_line() -> None:
    block = page.README.read_text(encoding="utf-8").split("\n\n")[1]
    for line in block.splitlines():
        words = line.partition("#")[0].split()
        assert sum(word in ("bash", "python") for word in words) == 1, line
        assert words[-1] not in ("bash", "python"), line


def test_the_page_of_a_proof_that_partly_failed(tmp_path: Path) -> None:
    facts = {"device": "a card", "python": "3.12", "cuda": "13.0", "versions": {"torch": "2.11"}}
    kernel = {"op": "layer_norm", "precision": "bf16", "shapes": [[8, 4], [4], [4]], "error": 0.001, "holds": True}
    files = {
        "parts": [{"machine": facts, "failure": "OSError: no"}, {"part": "step", "seconds": 9, "status": 124}],
        "trainer": [
            {"run": "fp32, stage 0", "seconds": 3.0, "losses": [[9.5, 1, 1, 1, 1, 2], [9.25, 1, 1, 1, 1, 2]]},
            {"check": "it learns", "holds": False, "worst_loss": 0.25, "bounds": [0.1, 0.2]},
            {"check": "it is resumed", "failure": "KeyError: 'x'"},
            {"run": "bf16, stage 3", "losses": [], "failure": "exit status 1: no such thing"},
        ],
        "step": [
            {"plan": 128, "planned_bytes": 4e10},
            {"pairs": 128, "kind": "update", "way": "eager", "pairs_per_s": 785.25, "mfu": 0.29, "peak_bytes": 41e9}
            | dict.fromkeys(("seconds", "returned_seconds", "host_cpu_seconds"), 0.163),
            {"pairs": 128, "kind": "update", "way": "compiled", "cannot": "no time was left"},
        ],
        "kernels": [
            kernel | {"implementation": "triton", "milliseconds": 1.25, "expected_gain_ms": 0.5},
            kernel | {"implementation": "torch", "milliseconds": 1.5, "taken": True},
            kernel | {"implementation": "torch", "milliseconds": 9.0, "taken": True, "precision": "fp32"},
        ],
    }
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page.markdown(tmp_path)
    assert "| step | 9 | **out of time** |" in text
    assert "| fp32, stage 0 | 3.0 | 2 | 9.5000 → 9.2500 |" in text
    assert "| it learns | **no** | worst_loss 0.25 |" in text
    assert "| it is resumed | **no** |  |" in text
    assert "bf16, stage 3 failed: exit status 1: no such thing" in text
    assert "| 128 | update | eager | 785.2 | 29.0 % | 163.0 | 163.0 | 163.0 | 41.00 | 40.00 |" in text
    assert "| 128 | update | compiled | no time was left |" in text
    assert "| layer_norm | triton | 0.500 | 0.250 |" in text


def test_a_failure_is_recorded_and_the_next_part_tried(tmp_path: Path) -> None:
    record = Record(tmp_path / "x.jsonl")
    record.attempt({"n": 1}, lambda: {"found": 1 / 0})
    record.attempt({"n": 2}, lambda: {"holds": True})
    assert read_records(tmp_path / "x.jsonl") == [
        {"n": 1, "failure": "ZeroDivisionError: division by zero"},
        {"n": 2, "holds": True},
    ]
    assert record.exit_code == 1


def test_requirements_are_on_the_machine_or_brought_along() -> None:
    """Except those that only commands outside the proof import."""

    def names(file: str) -> set[str]:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        found = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines)
        return {name[0].lower().replace("_", "-") for name in found if name}

    there = names("benchmarks/gpu/machine.txt") | names("benchmarks/gpu/brought.txt")
    assert names("requirements.txt") - there == {"fastapi", "ray", "uvicorn"}


def test_packages_brought_along_reach_processes_of_tests(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "brought_along.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_command(["python3", "-c", "import brought_along, mvlm"])
    assert done.returncode == 0, done.stderr


def test_products_in_fp8_are_held_to_the_accuracy_of_fp8() -> None:
    """Products rounded to e4m3 pass; wrong products do not, nor does a kernel without fp8 that is as far off."""

    def in_fp8(x: Tensor, weight: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
        def rounded(y: Tensor) -> Tensor:
            top = y.abs().max().detach() / 448
            return y + ((y / top).to(torch.float8_e4m3fn).to(y.dtype) * top - y).detach()

        return F.linear(rounded(x), scale * rounded(weight), bias)

    ways = [Implementation(name, in_fp8) for name in ("torchao", "other")]
    wrong = [Implementation("torchao", partial(in_fp8, scale=1.2))]
    arguments = tuple(torch.randn(*shape, requires_grad=True) for shape in ((64, 48), (32, 48), (32,)))
    found = [
        parity.Trial(Op("linear", one, linear.implementations[-1]), arguments, "fp32").judge(one)
        for one in (*ways, *wrong)
    ]
    assert [line["holds"] for line in found] == [True, False, False]
    assert found[0]["error"] > 0.01


def test_the_expected_gain_of_a_fused_kernel_is_that_of_its_bytes() -> None:
    """A norm of 1,000 rows of 768 numbers in bf16 saves two passes at 3.35 TB/s; from others nothing is expected."""
    plain = OPS["layer_norm"].implementations[-1]
    op = Op("layer_norm", Implementation("triton", plain.run), plain)
    arguments = (torch.randn(1000, 768, requires_grad=True), *(torch.ones(768, requires_grad=True) for _ in "ab"), 1e-6)
    trials = {name: parity.Trial(op, parity.in_precision(arguments, kind), name) for name, kind in PRECISIONS.items()}
    ours = op.implementations[0]
    assert trials["bf16"].judge(ours)["expected_gain_ms"] == round(1e3 * 2 * 2 * 768_000 / 3.35e12, 4)
    assert "expected_gain_ms" not in trials["bf16"].judge(plain) | trials["fp32"].judge(ours)
