"""The supervisor of attempts, with launchers that fail, hang and flood its output."""

import json
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from cluster.logs import MergedLogs, name_rank_logs
from tests.conftest import ROOT

WATCH = """
import os, signal, socket, sys
from pathlib import Path
from cluster.environment import inherited
from cluster.processes import start_time
from cluster.record import JobRecord
from cluster.supervisor import Supervisor, TimeLimit
logs, launcher, restarts, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), TimeLimit(*map(float, sys.argv[4:]))
record = JobRecord("small", "local", str(logs), socket.gethostname(), os.getpid(), start_time(os.getpid()))
record.is_command = "IS_COMMAND" in os.environ
watch = Supervisor(record, logs, lambda number: [sys.executable, "-c", launcher], inherited(), restarts, limit)
sys.exit(watch.run())
"""
WAITS = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True); time.sleep(30)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(30)"
LEAVES_A_RANK = """
import os, subprocess, sys
rank = [sys.executable, "-c", "import time; time.sleep(30)"]
print(subprocess.Popen(rank, env=os.environ | {"RANK": "0"}).pid)
"""
RANK_HAS_ENDED = """
from pathlib import Path
(log,) = Path(%r).glob("attempt-*")
(log / "rank-00000.log").write_text("Stopped because the launcher has died at step 6, saved in 0.2 s; the same ...\\n")
"""


@pytest.fixture
def watch(tmp_path):
    """Start a supervisor of a launcher given as Python text; its output is not read."""
    started = []

    def start(launcher, restarts=0, limit=(), ignoring=()):
        def ignore():
            for number in ignoring:
                signal.signal(number, signal.SIG_IGN)

        words = [sys.executable, "-c", WATCH, str(tmp_path), launcher, str(restarts), *map(str, limit)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, cwd=ROOT, preexec_fn=ignore, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def exit_codes(logs):
    return [attempt["exit_code"] for attempt in json.loads((logs / "job.json").read_text())["attempts"]]


def wait_for(path):
    deadline = time.monotonic() + 100
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("code", "expected"), [(0, [0]), (1, [1]), (2, [2]), (70, [70, 70, 70]), (75, [75, 75, 75]), (247, [247, 247, 247])]
)
def test_failures_that_are_not_mistakes_are_retried_up_to_the_bound(watch, tmp_path, code, expected):
    assert watch(f"raise SystemExit({code})", restarts=2).wait(20) == code
    assert exit_codes(tmp_path) == expected
    assert len(list(tmp_path.glob("attempt-*/launcher.log"))) == len(expected)


@pytest.mark.parametrize(
    ("saved", "told", "expected"),
    [([], [], 4), ([30] * 9, [], 4), ([], [30, 20, 30, 25, 30], 4), ([5, 5, 5, 7, 7, 7, 7], [1] * 9, 7)],
    ids=["no step", "one checkpoint", "repeated steps", "a step in between"],
)
def test_restarts_without_a_new_step_end_the_job(watch, tmp_path, saved, told, expected):
    """Attempts save the checkpoints and write the metrics in the lists, one each."""
    launcher = f"""
import json, pathlib
run = pathlib.Path({str(tmp_path)!r})
number, saved, told = len(list(run.glob("attempt-*"))) - 1, {saved}, {told}
for step in saved[number : number + 1]:
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints/latest").write_text(f"step_{{step:08d}}")
for step in told[number : number + 1]:
    print(json.dumps({{"step": step, "loss": 1.0}}), file=open(run / "metrics.jsonl", "a"))
raise SystemExit(75)
"""
    process = watch(launcher, restarts=8)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and exit_codes(tmp_path) == [75] * expected
    newest = max(*saved, *told[:expected], 0, 0)
    assert f"3 restarts in a row have made no step beyond {newest}, so the job ends: see how its logs end" in said
    steps = [attempt["step"] for attempt in json.loads((tmp_path / "job.json").read_text())["attempts"]]
    assert max(steps) == steps[-4] == newest


def test_a_run_that_was_rolled_back_need_not_pass_its_former_last_step(watch, tmp_path):
    (tmp_path / "checkpoints/step_00000090").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 90, "loss": 1.0}\n')
    launcher = f"""
import json, pathlib
run = pathlib.Path({str(tmp_path)!r})
step = 10 * len(list(run.glob("attempt-*")))
print(json.dumps({{"step": step, "loss": 1.0}}), file=open(run / "metrics.jsonl", "a"))
(run / "checkpoints/latest").write_text(f"step_{{step:08d}}")
raise SystemExit(75 if step < 60 else 0)
"""
    assert watch(launcher, restarts=8).wait(60) == 0
    assert exit_codes(tmp_path) == [75] * 5 + [0]


def test_a_command_without_steps_is_restarted_as_often_as_the_job_allows(watch, tmp_path, monkeypatch):
    monkeypatch.setenv("IS_COMMAND", "1")
    assert watch("raise SystemExit(75)", restarts=5).wait(60) == 75
    assert exit_codes(tmp_path) == [75] * 6


def test_a_later_submission_continues_the_numbers_of_attempts(watch, tmp_path):
    assert watch("print(1)").wait(20) == 0
    assert watch("raise SystemExit(1)").wait(20) == 1
    assert exit_codes(tmp_path) == [0, 1]
    assert (tmp_path / "attempt-001/launcher.log").read_text() == "1\n"


def test_the_output_shows_every_attempt_in_full(watch, tmp_path):
    out = watch("print('one\\ntwo', end=''); raise SystemExit(75)", restarts=1).communicate(timeout=60)[0]
    shown = [f"==> {tmp_path}/attempt-00{number} <==\none\ntwo\n" for number in (1, 2)]
    assert out == "".join(shown)


def test_a_reader_that_reads_nothing_does_not_hold_up_the_job(watch, tmp_path):
    assert watch("print('x' * 1_000_000)").wait(20) == 0
    assert (tmp_path / "attempt-001/launcher.log").stat().st_size == 1_000_001


def test_a_reader_that_has_gone_does_not_end_the_job(watch, tmp_path):
    process = watch("import time; print(1, flush=True); time.sleep(0.5); print(2)")
    process.stdout.close()
    process.stdout = None
    assert process.wait(60) == 0
    assert (tmp_path / "attempt-001/launcher.log").read_text() == "1\n2\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_not_followed_by_a_restart(watch, tmp_path, number):
    waiting = (
        "import signal, time, sys; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True); time.sleep(30)"
    )
    process = watch(waiting, restarts=5)
    wait_for(tmp_path / "attempt-001/launcher.log")
    process.send_signal(number)
    assert process.wait(60) == 75 and exit_codes(tmp_path) == [75]


def test_a_stop_before_there_are_ranks_loses_nothing(watch, tmp_path):
    process = watch("import time; print(1, flush=True); time.sleep(30)", restarts=5)
    wait_for(tmp_path / "attempt-001/launcher.log")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75 and exit_codes(tmp_path) == [75]


def test_a_background_supervisor_under_nohup_ignores_only_the_hangup(watch, tmp_path):
    process = watch(WAITS, restarts=5, ignoring=(signal.SIGINT, signal.SIGHUP))
    wait_for(tmp_path / "attempt-001/launcher.log")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75 and exit_codes(tmp_path) == [75]


def test_a_second_stop_kills_a_launcher_that_ignores_the_first(watch, tmp_path):
    process = watch(DEAF, restarts=5)
    wait_for(tmp_path / "attempt-001/launcher.log")
    process.send_signal(signal.SIGINT)
    assert "stopping" in [process.stderr.readline() for _ in range(2)][1]
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 137 and exit_codes(tmp_path) == [137]


def test_no_rank_outlives_its_attempt(watch, tmp_path):
    process = watch(LEAVES_A_RANK)
    assert process.wait(60) == 70  # the launcher's 0 was no success
    pid = int((tmp_path / "attempt-001/launcher.log").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_rank_that_ended_because_its_launcher_died_is_not_a_success(watch, tmp_path):
    process = watch(RANK_HAS_ENDED % str(tmp_path))
    assert process.wait(60) == 70 and exit_codes(tmp_path) == [70]


def test_cancel_stops_a_supervised_job_for_good(watch, cluster, tmp_path):
    process = watch(WAITS, restarts=5)
    wait_for(tmp_path / "attempt-001/launcher.log")
    assert "running, attempt 1, pid" in cluster("status", tmp_path)[1]
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    assert cluster("cancel", tmp_path)[0] == 0
    reaper.join()
    assert process.returncode == 75 and exit_codes(tmp_path) == [75]


TIMED = """
import os, signal, subprocess, sys, time
rank = "import signal, sys, time; signal.signal(10, {on_warning}); print('ready', flush=True); time.sleep(30)"
started = subprocess.Popen([sys.executable, "-c", rank], env=os.environ | {{"RANK": "0"}}, stdout=subprocess.PIPE)
started.stdout.readline()
print("told to wait", flush=True)
sys.exit(started.wait() % 256)
"""


def test_a_job_near_its_time_limit_saves_and_restarts_with_the_full_time(watch, tmp_path):
    process = watch(TIMED.format(on_warning="lambda *_: sys.exit(75)"), restarts=1, limit=(600, 599))
    assert process.wait(60) == 75 and exit_codes(tmp_path) == [75, 75]
    said = process.stderr.read()
    assert said.count("s away: the ranks save and end") == 2 and "attempt 1 was preempted, everything saved" in said


def test_ranks_that_do_not_end_in_time_are_killed(watch, tmp_path):
    process = watch(TIMED.format(on_warning="signal.SIG_IGN"), limit=(3, 2))
    assert process.wait(60) == 137 and exit_codes(tmp_path) == [137]
    said = process.stderr.read()
    assert "the time limit, 3 s, is over: what had not ended was killed" in said
    assert "told to wait" in (tmp_path / "attempt-001/launcher.log").read_text()


def test_logs_of_ranks_are_merged_by_line_and_named(cluster, tmp_path):
    folder = tmp_path / "attempt-012"
    folder.mkdir()
    (folder / "launcher.log").write_text("launching\n")
    (folder / "20261125101112_rank11.log").write_text("one\nwithout an end")
    (folder / "20261125101112_rank0.log").write_text("zero\n")
    name_rank_logs(tmp_path, 12)
    assert sorted(path.name for path in folder.glob("rank*")) == ["rank-00000.log", "rank-00011.log"]
    merged = MergedLogs(tmp_path, 12)
    assert b"".join(merged.new()) == b"launching\n0: zero\n11: one\n"
    with open(folder / "rank-00011.log", "a") as file:
        file.write(" yet\n")
    (folder / "rank-00000.log").open("a").write("last")
    assert b"".join(merged.new()) == b"11: without an end yet\n"
    assert (b"".join(merged.new()), merged.unended()) == (b"", b"0: last\n")
    (folder / "rank-00011.log").unlink()
    assert b"".join(MergedLogs(tmp_path, 12).new()) == b"launching\nzero\n"


def test_a_job_that_filled_the_disk_of_its_logs_ends_as_its_ranks_did(mount_disk):
    disk = mount_disk("64k")
    fills = f"open({str(disk / 'full')!r}, 'wb', 0).write(bytes(1 << 20)); raise SystemExit(75)"
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(disk), fills, "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 75 and "Traceback" not in done.stderr
    assert f"cluster: {disk} cannot record how attempt 1 ended ([Errno 28] No space left on device" in done.stderr
