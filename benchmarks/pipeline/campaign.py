"""Inject faults into the steps of a pipeline, and compare their output with that of an undisturbed run.

    python -m benchmarks.pipeline.campaign --on local --trials 5
    python -m benchmarks.pipeline.campaign --on slurm,ray

In a trial one step has to run again, a fault hits it at a random moment, and the pipeline is submitted again until all
is done. Each trial becomes a JSON line of results/trials.jsonl, so that a stopped campaign resumes. It needs root, for
a small disk to fill and for the nodes of SLURM and Ray.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.kept import add_record, read_records
from benchmarks.pipeline.backends import Backend, Local, Ray, Slurm, marked
from benchmarks.pipeline.store import ObjectStore
from benchmarks.pipeline.workplace import FILE, LOGS, OUTPUTS, STORED, forget, hashes, prepare
from tests.conftest import ROOT

RESULTS = Path(__file__).parent / "results/trials.jsonl"
FAULTS = {
    "local": ("driver", "node", "disk"),
    "slurm": ("driver", "node", "controller", "link", "disk"),
    "ray": ("driver", "node", "head", "link", "disk"),
}
COUNT = 50
STORE = "store"
OFF_THE_STORE = ("command", "export")
"""Kinds of steps that neither read shards nor write any."""
DISK = "1600m"  # a preflight needs 1 GB of it to be free
LONGEST = 6.0  # seconds into a step at which its fault comes, at most
MOST = 6  # submissions, or faults that come too late, after which a trial is given up
PATIENCE = 1800.0
POLL_SECONDS = 3.0


def drawn() -> list[tuple[str, str, str]]:
    """Back-end, step and fault of each trial, in an order in which each of them occurs early. After them, each kind of
    step that reads or writes shards loses the store, on the three back-ends in turn."""
    every = [(backend, step, fault) for backend, faults in FAULTS.items() for fault in faults for step in OUTPUTS]
    Random(0).shuffle(every)
    chosen: list[tuple[str, str, str]] = []
    while len(chosen) < COUNT:
        counts = {word: sum(word in trial for trial in chosen) for trial in every for word in trial}
        best = min((trial for trial in every if trial not in chosen), key=lambda trial: sum(counts[w] for w in trial))
        chosen.append(best)
    on_store = [step for step in OUTPUTS if step not in OFF_THE_STORE]
    return chosen + [(backend, step, STORE) for backend, step in zip(cycle(FAULTS), on_store, strict=False)]


class Campaign:
    """Trials on one back-end.

    Args:
        folder: a small disk is mounted in it; an undisturbed run's output is kept beside that.
        kinds: of the pipeline's steps.
    """

    def __init__(self, backend: Backend, folder: Path, kinds: Collection[str]) -> None:
        self._backend, self._kinds = backend, kinds
        self._folder, self._now = folder, folder / "disk/now"

    def undisturbed(self, store: ObjectStore | None) -> Path:
        """The folder with the output of an undisturbed run and hashes of it, made unless it is there.

        Args:
            store: where to put shards; None = in a folder.
        """
        of_it = "stored" if store else "plain"
        # The commit is in the name because an export contains the code.
        kept = self._folder / "-".join(["undisturbed", of_it, commit()[:9], *self._kinds])
        if not (kept / "hashes.json").exists():
            shutil.rmtree(self._now, ignore_errors=True)
            prepare(self._now, self._kinds, store.variables if store else None)
            with store.holding(self._now / STORED) if store else nullcontext():
                self._backend.submit()
                if self._finish() > 1:
                    raise RuntimeError(f"the undisturbed run has failed: see {self._now / LOGS}")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self._now, kept)
            (kept / "hashes.json").write_text(json.dumps(hashes(self._now), indent=1))
        return kept

    def trial(self, step: str, fault: str, draw: Random) -> dict[str, Any]:
        """Inject a fault and return the outcome; one that comes too late is tried again, earlier."""
        store = ObjectStore(self._backend.site) if fault == STORE else None
        kept = self.undisturbed(store)
        cause = store.cut if store else partial(self._backend.faults[fault], step)
        for halved in range(MOST):
            shutil.rmtree(self._now, ignore_errors=True)
            shutil.copytree(kept, self._now)
            forget(self._now, step)
            with store.holding(self._now / STORED) if store else nullcontext():
                outcome = self._inject(step, cause, draw.uniform(0, LONGEST / 2**halved))
            if outcome:
                break
        else:
            raise RuntimeError(f"{step} ends before a fault can hit it")
        expected, found = json.loads((kept / "hashes.json").read_text()), hashes(self._now)
        differs = [name for name, value in expected.items() if found[name] != value]
        named = {"backend": self._backend.name, "step": step, "fault": fault}
        return named | outcome | {"differs": differs, "hashes": found}

    def _inject(self, step: str, cause: Callable[[], None], after: float) -> dict[str, Any] | None:
        """Inject a fault into a step so many seconds after it has begun; None if it is over by then."""
        self._backend.submit()
        logs, began = self._now / LOGS / step, time.monotonic()
        while not any(logs.glob("**/attempt-*")):
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"{step} does not begin: see {logs}")
            time.sleep(0.05)
        time.sleep(after)
        if not marked(self._now, step):
            self._finish()
            return None
        moment = time.monotonic()
        cause()
        return {
            "seconds into the step": round(after, 1),
            "submissions": self._finish(),
            "seconds until all was done": round(time.monotonic() - moment, 1),
        }

    def _finish(self) -> int:
        """Submit again whenever all has ended and something is not done; returns the number of submissions."""
        deadline = time.monotonic() + PATIENCE
        for number in range(1, MOST + 1):
            while (states := self._states()) & {"running", "waiting"}:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it does not end: {states}")
                time.sleep(POLL_SECONDS)
            if states <= {"done", "unchanged"}:
                return number
            self._backend.run("cancel", FILE)  # jobs that can never begin
            self._backend.submit()
        raise RuntimeError(f"submitted {MOST} times, and not done: see {self._now / LOGS}")

    def _states(self) -> set[str]:
        if self._backend.busy():
            return {"running"}
        done = self._backend.run("status", FILE, "--json")
        if done.returncode:  # the controller or head is gone for a while, or nothing has been submitted yet
            return {"waiting"}
        return {step["state"] for step in json.loads(done.stdout)["steps"]}


@contextmanager
def at(name: str, folder: Path, kinds: Collection[str]) -> Iterator[Campaign]:
    """A campaign on a back-end, with a small disk; both are gone afterwards."""
    disk = folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    shutil.rmtree(folder / "site", ignore_errors=True)  # an earlier call's cluster
    try:
        now = disk / "now"
        now.mkdir()
        backend: Backend = Local(now) if name == "local" else {"slurm": Slurm, "ray": Ray}[name](now, folder / "site")
        try:
            backend.up()
            yield Campaign(backend, folder, kinds)
        finally:
            backend.down()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def commit() -> str:
    """The commit of the measured code, which must have no changes."""
    measured = ["cluster", "mvlm", "data_tools", "benchmarks/pipeline/*.py", "benchmarks/pipeline/*.toml"]
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *measured], cwd=ROOT).returncode:
        sys.exit("The code has changes that are not committed: commit them first.")
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--on", default=",".join(FAULTS), help="back-ends, separated by commas (default: all)")
    words.add_argument("--trials", type=int, default=len(drawn()), help="at most (default: all)")
    words.add_argument("--kinds", default=",".join(OUTPUTS), help="kinds of steps, with commas (default: all)")
    words.add_argument("--folder", type=Path, default=Path("runs/faults"), help="to work in (default: runs/faults)")
    args = words.parse_args()
    measured, failed, left, kinds = commit(), 0, args.trials, args.kinds.split(",")
    lines = read_records(RESULTS)
    for name in args.on.split(","):
        done = {(line["backend"], line["step"], line["fault"]) for line in lines}
        open_ = [(n, *trial[1:]) for n, trial in enumerate(drawn()) if trial[0] == name and trial not in done]
        todo = [trial for trial in open_ if trial[1] in kinds][:left]
        left -= len(todo)
        if not todo:
            continue
        with at(name, (args.folder / name).absolute(), kinds) as campaign:
            for number, step, fault in todo:
                line = {"trial": number, "commit": measured} | campaign.trial(step, fault, Random(number))
                add_record(RESULTS, line)
                print(json.dumps({key: value for key, value in line.items() if key != "hashes"}), flush=True)
                failed += bool(line["differs"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
