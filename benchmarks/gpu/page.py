"""A proof's results as one page: python benchmarks/gpu/page.py FOLDER prints it.

    python benchmarks/gpu/page.py            # puts those of the kept proof, results/, into README.md

Every figure is read from the result files; the page says what has not run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.record import Line
from benchmarks.kept import read_records
from benchmarks.step.medians import results as peer_results

FOLDER = Path(__file__).parent
RESULTS, README = FOLDER / "results", FOLDER / "README.md"
BEGIN, END = "<!-- what the proof found -->", "<!-- end -->"
NOTHING = (
    "No proof has run on a GPU yet: there are no figures. What `--rehearse` runs on a CPU says nothing about speed."
)


def markdown(folder: Path) -> str:
    """The page; `NOTHING` if the folder has no proof."""
    parts = read_records(folder / "parts.jsonl")
    if not parts:
        return NOTHING
    sections = [_machine(parts), _parts(parts)]
    makers = {
        "trainer": _trainer,
        "kernels": _kernels,
        "step": _step,
        "profile": _profile,
        "large_batch": _large_batch,
        "peers": _peers,
    }
    sections += [make(lines) for name, make in makers.items() if (lines := read_records(folder / f"{name}.jsonl"))]
    return "\n\n".join(sections)


def _machine(parts: list[Line]) -> str:
    line = next((line for line in parts if "machine" in line), None)
    if line is None:
        return "The machine was not recorded."
    facts = line["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = f"{facts['device']}; Python {facts['python']}, CUDA {facts['cuda']}, {versions}."
    if "product_flops" in line:
        product, copied = line["product_flops"] / 1e12, line["copied_bytes_per_s"] / 1e12
        text += f" A large bf16 product ran at {product:,.4g} TFLOP/s, a large copy at {copied:.3g} TB/s."
    return text


def _parts(parts: list[Line]) -> str:
    rows = [(line["part"], line["seconds"], _ended(line["status"])) for line in parts if "part" in line]
    return _table(("part", "seconds", "ended"), rows)


def _ended(status: int) -> str:
    return {0: "well", 124: "**out of time**", 137: "**out of time**"}.get(status, f"**with status {status}**")


def _trainer(lines: list[Line]) -> str:
    rows = [
        (f"{line['run']}", line.get("seconds", ""), len(line["losses"]), _last(line))
        for line in lines
        if "losses" in line
    ]
    text = "## The trainer\n\n" + _table(("run", "seconds", "steps", "first → last loss"), rows)
    checks = [
        (
            line["check"],
            _held(line),
            "; ".join(f"{k} {_number(v)}" for k, v in line.items() if k.startswith(("worst", "killed", "differing"))),
        )
        for line in lines
        if "check" in line
    ]
    return text + "\n\n" + _table(("promise", "held", "figures"), checks) + _failures(lines, "run")


def _last(line: Line) -> str:
    losses = line["losses"]
    return f"{losses[0][0]:.4f} → {losses[-1][0]:.4f}" if losses else ""


def _kernels(lines: list[Line]) -> str:
    rows = [
        (
            line["op"] + (f", {line['form']}" if "form" in line else ""),
            line["implementation"] + (" (taken)" if line.get("taken") else ""),
            line["precision"],
            "×".join(map(str, line["shapes"][0])),
            f"{line['error']:.2g}" if "error" in line else "",
            _held(line) if "holds" in line else line.get("cannot", "**failed**"),
            line.get("milliseconds", ""),
        )
        for line in lines
        if "implementation" in line
    ]
    head = ("operation", "by", "in", "shape", "error", "at most twice the plain one's", "ms, forward and backward")
    text = "## Kernels against float64\n\n" + _table(head, rows)
    for line in lines:
        if "whole_step" in line and "losses" in line:
            differ = f"Losses of a whole step in bf16 differ from float64's by at most {line['error']:.2g}"
            text += f"\n\n{differ}; small enough: {_held(line)}."
    return text + _gains(lines) + _failures(lines, "op")


def _gains(lines: list[Line]) -> str:
    """The time that each fused kernel saves over the implementation that is taken in its place."""

    def of(line: Line) -> tuple[Any, ...]:
        return line["op"], line["precision"], line["shapes"]

    taken = {str(of(line)): line for line in lines if line.get("taken") and "milliseconds" in line}
    rows = []
    for line in lines:
        if "expected_gain_ms" in line:
            other = taken.get(str(of(line)))
            gain = f"{other['milliseconds'] - line['milliseconds']:.3f}" if other else ""
            rows.append((line["op"], line["implementation"], f"{line['expected_gain_ms']:.3f}", gain))
    if not rows:
        return ""
    return "\n\n" + _table(("operation", "by", "ms that it should gain on an H100", "ms gained"), rows)


def _step(lines: list[Line]) -> str:
    plans = {line["plan"]: line for line in lines if "planned_bytes" in line}
    rows = []
    for line in lines:
        if "kind" not in line:
            continue
        plan = plans.get(line["pairs"], {}).get("planned_bytes") if line["kind"] == "update" else None
        rows.append(
            (
                line["pairs"],
                line["kind"],
                line["way"],
                f"{line['pairs_per_s']:,.1f}" if "pairs_per_s" in line else line.get("cannot", "**failed**"),
                f"{100 * line['mfu']:.1f} %" if "mfu" in line else "",
                _ms(line, "seconds"),
                _ms(line, "returned_seconds"),
                _ms(line, "host_cpu_seconds"),
                _gb(line.get("peak_bytes")),
                _gb(plan),
            )
        )
    head = (
        "pairs",
        "what",
        "how",
        "pairs/s",
        "MFU",
        "ms",
        "ms till the call returns",
        "CPU ms",
        "GB at the peak",
        "GB planned",
    )
    return "## The step at full size, bf16\n\n" + _table(head, rows) + _failures(lines, "way")


def _profile(lines: list[Line]) -> str:
    rows = [
        (line["way"], line["kind"], line["milliseconds"], f"{100 * line['share']:.1f} %", line["launches"])
        for line in lines
        if "kind" in line
    ]
    head = ("step", "kind of work", "ms a step", "share", "launches")
    return "## Where a step's time goes\n\n" + _table(head, rows) + _failures(lines, "way")


def _large_batch(lines: list[Line]) -> str:
    rows = [
        (
            f"{line['own']:,} × {line['global']:,}",
            line["op"],
            line["implementation"],
            "with ids" if line["ids"] else "",
            line.get("milliseconds", line.get("cannot", "**failed**")),
            _gb(line.get("peak_bytes")),
            f"{line['error']:.2g}" if "error" in line else "",
            _held(line) if "holds" in line else "",
        )
        for line in lines
        if "op" in line
    ]
    head = ("own × all pairs", "operation", "by", "duplicates", "ms", "GB", "error", "exact")
    return "## The contrastive loss over a large global batch\n\n" + _table(head, rows) + _failures(lines, "op")


def _peers(lines: list[Line]) -> str:
    rows = [
        (result.variant, f"{result.flops / 1e9:.1f}", f"{result.pairs_per_s:,.1f}", f"{100 * result.peak:.1f} %")
        for result in peer_results(lines)
    ]
    failed = "".join(f"\n\n`{line['variant']}` failed: {line['error']}" for line in lines if "error" in line)
    return "## Other people's steps\n\n" + _table(("step", "GFLOP a pair", "pairs/s", "of the peak"), rows) + failed


def _held(line: Line) -> str:
    return "yes" if line.get("holds") else "**no**"


def _ms(line: Line, key: str) -> str:
    return f"{1e3 * line[key]:.1f}" if key in line else ""


def _gb(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _failures(lines: list[Line], name: str) -> str:
    return "".join(
        f"\n\n{line.get(name, line.get('check', ''))} failed: {line['failure']}" for line in lines if "failure" in line
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * lines[0].count(" | ") + " --- |", *lines[1:]])


def put(text: str, page: str) -> str:
    """The README with the page between its markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{page}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    if len(sys.argv) > 1:
        print(markdown(Path(sys.argv[1])))
    else:
        README.write_text(put(README.read_text(encoding="utf-8"), markdown(RESULTS)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
