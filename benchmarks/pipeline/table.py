"""Print README.md's tables from results/trials.jsonl: `python -m benchmarks.pipeline.table`."""

from __future__ import annotations

from typing import Any

from benchmarks.kept import read_records
from benchmarks.pipeline.campaign import FAULTS, RESULTS, STORE, drawn
from benchmarks.pipeline.workplace import OUTPUTS

NAMES = {"local": "this machine", "slurm": "SLURM", "ray": "Ray"}


def table(backend: str, lines: list[dict[str, Any]]) -> str:
    """A row per kind of step, a column per fault: seconds until all was done, and submissions if more than one."""
    cells = {(line["step"], line["fault"]): _cell(line) for line in lines if line["backend"] == backend}
    open_ = {trial[1:]: "open" for trial in drawn() if trial[0] == backend}
    faults = [*FAULTS[backend], STORE]
    rows = [[step, *((open_ | cells).get((step, fault), "") for fault in faults)] for step in OUTPUTS]
    head = [NAMES[backend], *faults]
    return "\n".join(f"| {' | '.join(row)} |".replace("  ", " ") for row in [head, ["---"] * len(head), *rows])


def _cell(line: dict[str, Any]) -> str:
    again = f" ({line['submissions']})" if line["submissions"] > 1 else ""
    return f"{line['seconds until all was done']:.0f}{again}" + (" **differs**" if line["differs"] else "")


if __name__ == "__main__":
    kept = read_records(RESULTS)
    print(f"{len(kept)} of {len(drawn())} trials; {sum(bool(line['differs']) for line in kept)} differ\n")
    print("\n\n".join(table(backend, kept) for backend in FAULTS))
