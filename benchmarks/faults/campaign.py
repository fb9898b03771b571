"""Inject into small training runs the faults that long ones suffer, and compare the results with undisturbed runs'.

    python benchmarks/faults/campaign.py
    python benchmarks/faults/campaign.py --kinds kill_rank,kill_in_save --count 20 --seconds 600

Every injection becomes a JSON line of the results file when its run has ended, so that a stopped campaign resumes: it
ends when the file has as many injections as asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.faults.injections import ALL
from benchmarks.faults.trial import UNDISTURBED, Workshop, may_mount
from benchmarks.kept import add_record, code_version, read_records

RESULTS = Path(__file__).parent / "results" / "injections.jsonl"
PER_TRIAL = 5
SELDOM = {"freeze_rank": 0.5}
"""Kinds that take long, and how often they are injected for each time that another kind is."""


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=200, help="until the file has so many injections (default: 200)")
    words.add_argument("--kinds", default=",".join(ALL), help="kinds of faults, separated by commas (default: all)")
    words.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial later than this")
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--keep", type=Path, metavar="DIR", help="a new folder; runs that lost something stay in it")
    arguments = words.parse_args()
    kinds = arguments.kinds.split(",")
    if strangers := set(kinds) - {*ALL}:
        words.error(f"unknown kinds {', '.join(sorted(strangers))}; known are {', '.join(ALL)}")
    if "fill_disk" in kinds and not may_mount():
        kinds.remove("fill_disk")
        print("fill_disk is left out: only root may mount the small disk it needs.", file=sys.stderr)
    began, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        workshop = Workshop(arguments.keep or Path(folder))
        while injected(lines := read_records(arguments.results)) < arguments.count and (
            time.monotonic() - began < arguments.seconds
        ):
            seed = 1 + max((line["trial"] for line in lines), default=-1)
            chosen = choose(kinds, Counter(line["kind"] for line in lines), Random(seed))
            found = [line | {"commit": code_version()} for line in workshop.trial(seed, chosen)]
            for line in found:
                add_record(arguments.results, line)
                print(json.dumps(line), flush=True)
            failed += sum(not line["lost nothing"] for line in found)
    return 1 if failed else 0


def choose(kinds: list[str], counts: Counter[str], draw: Random) -> list[str]:
    """The rarest kinds so far. Another layout gets its own runs, since their losses are close but not equal."""
    ordered = sorted(kinds, key=lambda kind: (counts[kind] / SELDOM.get(kind, 1.0), draw.random()))
    if ordered[0] == "another_layout":
        return ["another_layout"] * 3
    chosen = [kind for kind in ordered if kind != "another_layout"]
    chosen = (chosen * PER_TRIAL)[:PER_TRIAL] if len(chosen) < PER_TRIAL else chosen[:PER_TRIAL]
    draw.shuffle(chosen)
    return sorted(chosen, key=lambda kind: kind == "start_twice")  # while one yields, the other may reach the end


def injected(lines: list[dict]) -> int:
    return sum(line["kind"] != UNDISTURBED for line in lines)


if __name__ == "__main__":
    sys.exit(main())
