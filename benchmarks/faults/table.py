"""The campaign's results as a table for the README and as a picture.

python benchmarks/faults/table.py                        # the table, on standard output
python benchmarks/faults/table.py --picture FILE.png     # also the step at which each fault was injected
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.faults.campaign import RESULTS
from benchmarks.faults.trial import UNDISTURBED
from benchmarks.kept import read_records

TITLES = {
    "kill_rank": "kill -9 one rank",
    "kill_all": "kill -9 everything",
    "kill_launcher": "kill -9 the launcher",
    "kill_in_save": "kill -9 during a save",
    "term_rank": "SIGTERM to one rank",
    "usr1_rank": "SIGUSR1 to one rank",
    "term_launcher": "SIGTERM to the launcher",
    "usr1_launcher": "SIGUSR1 to the launcher",
    "pause_rank": "one rank stopped for a moment",
    "freeze_rank": "one rank stopped for good",
    "damage_checkpoint": "the latest checkpoint damaged",
    "fill_disk": "the disk full",
    "limit_files": "files may not grow (quota)",
    "spoil_image": "an image overwritten in its shard",
    "another_layout": "other ranks, other ZeRO stage",
    "start_twice": "the command given twice",
    "nan": "a batch of NaN loss",
    "spike": "a batch of 50 times the loss",
    "memory": "a bit of a weight or moment flipped",
    "processor": "a layer's output computed wrong once",
    UNDISTURBED: "left alone, and yet a promise broken",
}
HEAD = "| fault | times | samples lost | wrong losses | other promises broken | steps repeated | seconds to recovery |"


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--picture", type=Path)
    arguments = words.parse_args()
    lines = read_records(arguments.results)
    print(HEAD)
    print("|---|---|---|---|---|---|---|")
    for kind in TITLES:
        if found := [line for line in lines if line["kind"] == kind]:
            print(row(TITLES[kind], found))
    print(row("**all**", lines))
    if flipped := [line["noticed"] for line in lines if "noticed" in line]:
        print(f"\n{sum(flipped)} of {len(flipped)} flipped bits were noticed.")
    if arguments.picture:
        draw(lines, arguments.picture)
    return 0


def row(title: str, lines: list[dict[str, Any]]) -> str:
    lost = sum(line["samples lost"] + line["samples in other places"] for line in lines)
    wrong = sum(not line["losses equal"] for line in lines)
    broken = sum(bool(line["problems"]) for line in lines)
    cells = [
        title,
        len(lines),
        lost,
        wrong,
        broken,
        _of(lines, "steps repeated", median),
        _of(lines, "seconds lost", mean),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _of(lines: list[dict[str, Any]], name: str, average: Callable[[list[float]], float]) -> str:
    values = [line[name] for line in lines if line.get(name) is not None]
    return f"{average(values):.0f}" if values else ""


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw each injection as a point: its step, its kind, and whether anything was lost."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in TITLES if any(line["kind"] == kind for line in lines)]
    figure = Figure(figsize=(8, 0.8 + 0.28 * len(kinds)), layout="constrained")
    axes = figure.add_subplot()
    for good, colour in ((True, "tab:blue"), (False, "tab:red")):
        of_these = [line for line in lines if line["lost nothing"] is good and line["kind"] in kinds]
        steps = [line["what"].get("step") or 0 for line in of_these]
        name = f"{'nothing' if good else 'something'} lost: {len(of_these)}"
        axes.scatter(steps, [kinds.index(line["kind"]) for line in of_these], s=18, alpha=0.6, color=colour, label=name)
    axes.set_yticks(range(len(kinds)), [TITLES[kind] for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("step of the run at which it fell")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
