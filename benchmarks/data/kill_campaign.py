"""Kill sharding runs, single tasks of them or shares of their parts at random moments, and compare the results with an
undisturbed run's.

    python benchmarks/data/kill_campaign.py --engine local --kills 60
    python benchmarks/data/kill_campaign.py --engine local --kills 50 --of part --count 120
    python benchmarks/data/kill_campaign.py --engine local --kills 50 --of task
    python benchmarks/data/kill_campaign.py --engine ray --kills 50 --of task

A killed run is started again until it ends; one of which a task was killed has to end by itself. A share, which is what
one task of an array makes (`--part I/N`), is killed after a random part of its CPU time and only that share is made
again; then all are joined. Tasks on Ray are killed in a Ray that the campaign has started for all of its runs. Every
trial appends one JSON line to the results file, so that a stopped campaign resumes: it ends when the file has as many
kills of that engine and kind as asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import photo, write_folder  # noqa: E402
from benchmarks.kept import add_record, read_records  # noqa: E402
from data_tools.__main__ import main as data_tools_main  # noqa: E402
from data_tools.engines.chunks import HELD, RETRIES  # noqa: E402
from data_tools.engines.ray import connected  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "part_kills.jsonl"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
WINDOW = {"local": (0.3, 1.05), "ray": (0.65, 1.05)}
"""When a run may be killed, as shares of the time that a whole run takes; before that it is starting up."""

WORKERS = 2
MOST_DEAD, APART = RETRIES, 2 * HELD * WORKERS
"""At most so many tasks are killed before so many more parts are finished: one death more over the same part would end
a run, and by then every part that was under way when a task died is finished."""

SHARES = 3
LATEST = 0.6
"""When a share is killed at the latest, unless it has ended: this fraction of the CPU time that a whole run takes."""

MOST_KILLS = 6
"""The most kills in one trial; then the run is left to end."""


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--engine", choices=("local", "ray"), default="local")
    words.add_argument("--of", choices=("run", "task", "part"), default="run", help="what to kill (default: run)")
    words.add_argument("--kills", type=int, default=60, help="until the results file has so many (default: 60)")
    words.add_argument("--count", type=int, default=6000, help="records (default: 6000)")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--results", type=Path, default=RESULTS)
    arguments = words.parse_args()
    failed = 0
    shares_ray = (arguments.engine, arguments.of) == ("ray", "task")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_ray() if shares_ray else contextlib.nullcontext("") as address,
    ):
        workers = 1 if arguments.of == "part" else WORKERS
        source, argv = Path(folder) / "in", command(Path(folder), arguments.engine, workers, address)
        write_folder(source, [photo(seed, (120, 90)) for seed in range(50)], arguments.count)
        spoil(source)
        start = time.monotonic()
        subprocess.run([*argv, str(Path(folder) / "whole")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lasts = time.monotonic() - start
        expected = digest(Path(folder) / "whole")
        cpu_s = cpu_time_alone([*argv[3:], str(Path(folder) / "again")]) if arguments.of == "part" else 0.0
        while sum(kills := trials(arguments.results, arguments.engine, arguments.of)) < arguments.kills:
            seed = arguments.seed + len(kills)
            trial = {"engine": arguments.engine, "of": arguments.of, "seed": seed, "records": arguments.count}
            out, draw = Path(folder) / "out", random.Random(seed)
            if arguments.of == "task":
                found = run_with_killed_tasks(argv, out, lasts, draw)
            elif arguments.of == "part":
                found = run_with_killed_shares(argv, out, cpu_s, draw)
            else:
                found = run_trial(argv, out, arguments.engine, lasts, draw)
            if not found["kills"] and arguments.of != "part":
                lasts *= 0.8  # the machine was busier when that was measured
            same = found.pop("digest") == expected
            failed += not same
            add_record(arguments.results, trial | found | {"same as undisturbed": same})
            print(trial | found | {"same": same}, flush=True)
    return 1 if failed else 0


@contextlib.contextmanager
def running_ray() -> Iterator[str]:
    """A Ray whose processes descend from this one; yields its address.

    On a busy machine a restarted worker gets ten minutes: after the usual one minute Ray would give up its task.
    """
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
    with connected(None, WORKERS):
        yield ray.get_runtime_context().gcs_address


def command(folder: Path, engine: str, workers: int, address: str) -> list[str]:
    words = [sys.executable, "-m", "data_tools", "shard", "folder", str(folder / "in"), "--engine", engine]
    options = ["--workers", str(workers), "--split", "train=0.8,eval=0.2", "--shard-mb", "0.15", "--dedup", "exact"]
    running = ["--ray-address", address] if address else []
    return [*words, *options, *running, "--tolerate", "1", "--out"]


def spoil(source: Path) -> None:
    """Make most images differ, leave some equal, break some and delete some."""
    for number, path in enumerate(sorted((source / "images").iterdir())):
        if number % 17 == 3:
            path.write_bytes(b"<html>404</html>")
        elif number % 23 == 5:
            path.unlink()
        elif number % 10:
            path.write_bytes(path.read_bytes() + number.to_bytes(4, "big"))


def run_trial(argv: list[str], out: Path, engine: str, lasts: float, draw: random.Random) -> dict[str, object]:
    """Kill the run up to `MOST_KILLS` times, each after a random fraction of the time that a whole run takes."""
    kills: list[float] = []
    parts: list[int] = []
    for _ in range(MOST_KILLS):
        wait = draw.uniform(*WINDOW[engine]) * lasts
        if not run_and_kill(argv, out, wait):
            break
        kills.append(round(wait, 3))
        parts.append(len(list(out.with_name(f".{out.name}.partial").glob(".state/*.part"))))
    if not out.exists() or (out / ".state").exists():
        ended = subprocess.run([*argv, str(out)], cwd=ROOT, capture_output=True, text=True)
        if ended.returncode:
            print(ended.stderr, file=sys.stderr)  # and the digest will differ
    found = {"kills": len(kills), "after seconds": kills, "parts then": parts, "digest": digest(out)}
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(f".{out.name}.partial"), ignore_errors=True)
    return found


def run_with_killed_tasks(argv: list[str], out: Path, lasts: float, draw: random.Random) -> dict[str, object]:
    """Kill up to `MOST_KILLS` tasks of one run, at random times."""
    said = out.with_name("said")
    with said.open("w") as file:
        process = subprocess.Popen([*argv, str(out)], cwd=ROOT, start_new_session=True, stdout=file, stderr=file)
    killed: list[int] = []
    state = out.with_name(f".{out.name}.partial") / ".state"
    while process.poll() is None and len(killed) < MOST_KILLS:
        time.sleep(draw.uniform(0.01, 0.1) * lasts)
        finished = len(list(state.glob("*.part"))) if state.is_dir() else 0
        may_die = len(killed) < MOST_DEAD or finished >= killed[-MOST_DEAD] + APART
        tasks = working(os.getpid()) if may_die and state.is_dir() else []
        if tasks:
            killed.append(finished)
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(tasks), signal.SIGKILL)
    if process.wait():
        print(said.read_text()[-2000:], file=sys.stderr)
    found = {"kills": len(killed), "parts then": killed, "exit code": process.returncode, "digest": digest(out)}
    shutil.rmtree(out, ignore_errors=True)
    return found


def run_with_killed_shares(argv: list[str], out: Path, cpu_s: float, draw: random.Random) -> dict[str, object]:
    """Kill each share once, in a random order, and make only that share again; then join them."""
    state = out.with_name(f".{out.name}.partial") / ".state"
    shares = draw.sample(range(1, SHARES + 1), SHARES)
    killed: list[int] = []
    for share in shares:
        words = [*argv[3:], str(out), "--part", f"{share}/{SHARES}"]
        if not run_alone(words, draw.uniform(0, LATEST * cpu_s)):
            killed.append(len(list(state.glob("*.part"))))
            run_alone(words)
    run_alone([*argv[3:], str(out)])
    found = {"kills": len(killed), "shares": shares, "parts then": killed, "digest": digest(out)}
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(state.parent, ignore_errors=True)
    return found


def cpu_time_alone(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_alone(words)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime


def run_alone(words: list[str], cpu_s: float | None = None) -> bool:
    """Run a command in a process that has imported everything, and kill it after `cpu_s`; returns whether it ended."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(data_tools_main(words))
    while not os.waitpid(child, os.WNOHANG)[0]:
        if cpu_s is not None and cpu_time(child) >= cpu_s:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL
        time.sleep(0.002)
    return True


def cpu_time(pid: int) -> float:
    """CPU seconds of a process, from the scheduler's nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def working(pid: int) -> list[int]:
    """The descendants of this process that make parts: those of the pool, or Ray's that are running a task."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    below, found = {pid}, []
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    for child in below:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            pooled = b"forkserver" in words and b"forkserver" in Path(f"/proc/{parents[child]}/cmdline").read_bytes()
            if pooled or words.startswith(b"ray::apply"):
                found.append(child)
    return sorted(found)


def run_and_kill(argv: list[str], out: Path, wait: float) -> bool:
    """Start the run and kill it after `wait` with all its processes; False if it ended before."""
    process = subprocess.Popen([*argv, str(out)], cwd=ROOT, start_new_session=True, **QUIET)  # type: ignore[call-overload]
    try:
        process.wait(wait)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def digest(folder: Path) -> str:
    """A hash of all files and their names, leftovers included."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return total.hexdigest()


def trials(results: Path, engine: str, kind: str) -> list[int]:
    """The kills of each trial of that engine and kind so far."""
    found = read_records(results)
    return [trial["kills"] for trial in found if (trial["engine"], trial.get("of", "run")) == (engine, kind)]


if __name__ == "__main__":
    sys.exit(main())
