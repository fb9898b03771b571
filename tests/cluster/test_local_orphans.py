"""A job whose submit command was killed: its ranks are found by their mark, whatever their parent is now."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cluster.processes import MARK, members, ranks, start_time
from cluster.record import JobRecord

RANK = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
DEAD = {"backend": "local", "pid": 1, "pid_started": "never"}


@pytest.fixture
def orphan(tmp_path):
    """A process that says when it was asked to save, marked as a rank of the job in `logs`."""
    folder = tmp_path / "logs"
    folder.mkdir()
    marked = os.environ | {MARK: str(folder / "attempt-001"), "RANK": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(tmp_path / "saved")], env=marked, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def write_record(folder, **fields):
    attempts = [{"number": 1, "started": time.time()}]
    given = {"name": "small", "host": socket.gethostname(), "run_folder": str(folder), "attempts": attempts} | DEAD
    (folder / "job.json").write_text(json.dumps(given | fields))


def test_orphans_are_reported_block_a_submission_and_are_cancelled(orphan, job, cluster):
    folder = job.parent / "logs"
    write_record(folder)
    _, out, _ = cluster("status", job)
    assert "pid 1, which supervised it, is dead, ranks alive: 1; cancel it" in out
    code, _, err = cluster("submit", job, "--on", "local")
    assert code == 1 and "are still running on this machine: cancel it first" in err
    code, out, err = cluster("cancel", folder)
    assert (code, out) == (0, "small has ended before its first step.\n"), err
    assert orphan.poll() == 75 and (job.parent / "saved").exists()
    code, _, err = cluster("cancel", folder)
    assert code == 1 and "nothing to cancel" in err


def test_jobs_of_other_folders_are_left_alone(orphan, tmp_path):
    assert [member.pid for member in members(tmp_path / "logs")] == [orphan.pid]
    assert members(tmp_path / "log") == [] and members(tmp_path / "logs" / "attempt-001") == []


def test_children_of_ranks_are_not_taken_for_ranks(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    marked = os.environ | {MARK: str(tmp_path / "attempt-001"), "RANK": "0"}
    with subprocess.Popen([sys.executable, "-c", code], env=marked, stdin=-1, stdout=-1) as parent:
        parent.stdout.readline()
        found = members(tmp_path)
        parent.stdin.close()
    assert len(found) == 2 and ranks(found) == [parent.pid]


def test_a_process_that_has_ended_has_no_start_time():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert start_time(process.pid) == start_time(process.pid) is not None
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(process.pid) is None  # a zombie still
    process.communicate()
    assert start_time(process.pid) is None


def test_a_job_of_another_machine_is_not_judged_from_here(job, cluster):
    folder = job.parent / "logs"
    folder.mkdir()
    write_record(folder, host="elsewhere")
    assert "submitted on elsewhere" in cluster("status", job)[1]
    code, _, err = cluster("cancel", job)
    assert code == 1 and "cancel it there" in err


@pytest.mark.parametrize("text", ["", "[]", '{"name": "small"}', '{"attempts": [{"number": 1, "extra": 2}]}'])
def test_a_damaged_record_is_named(job, cluster, text):
    folder = job.parent / "logs"
    folder.mkdir()
    (folder / "job.json").write_text(text)
    code, _, err = cluster("status", job)
    assert code == 1 and "job.json is damaged" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "tail", ["", '{"step": 8, "lo', '{"step": 8, "eval/r1": 0.5}\n', '{"step": 8, "loss": null}\n', "[1]\n"]
)
def test_the_last_whole_training_line_counts(job, cluster, tail):
    folder = job.parent / "logs"
    folder.mkdir()
    write_record(folder)
    padding = "".join(json.dumps({"step": step, "loss": 1.0, "pad": "x" * 1000}) + "\n" for step in range(100))
    (folder / "metrics.jsonl").write_text(padding + '{"step": 7, "loss": 2.5}\n' + tail)
    assert "step 7  loss 2.5000" in cluster("status", job)[1]


def test_a_record_reads_back_and_leaves_nothing_half_written(tmp_path):
    JobRecord("small", "local", "run", "host", 1, None).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]
