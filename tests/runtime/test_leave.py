"""A rank ends after all pending work, but without finalizing the interpreter."""

import os
import subprocess
import sys

import pytest

MARKS = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

class Finalized:
    def __del__(self):
        print("finalized", flush=True)

def late(word):
    time.sleep(0.3)
    sys.stdout.write(f"{word}\\n")  # in one write, since the other thread writes too

kept = Finalized()
atexit.register(print, "at exit")
"""
WORK = """
threading.Thread(target=late, args=("thread",)).start()
ThreadPoolExecutor(1).submit(late, "pool")
print("said")
print("error", file=sys.stderr)
"""


def test_a_leaving_rank_completes_pending_work_and_finalizes_nothing():
    source = f"{MARKS}{WORK}from mvlm.runtime.launch import leave\nleave(75)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75 and done.stderr == "error\n"
    assert sorted(done.stdout.split("\n")[:-1]) == ["at exit", "pool", "said", "thread"]
    assert done.stdout.endswith("at exit\n")


@pytest.mark.parametrize("world, said", [(1, ["at exit", "finalized"]), (2, ["at exit"])])
def test_the_command_leaves_this_way_only_as_one_of_several_ranks(tmp_path, world, said):
    (tmp_path / "sitecustomize.py").write_text(MARKS)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": str(world), "PYTHONPATH": path}
    for words, code in (["completion", "bash"], 0), (["config", "no.such.key"], 1):
        done = subprocess.run(
            [sys.executable, "-m", "mvlm", *words], capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == code, done.stderr
        assert done.stdout.splitlines()[-len(said) :] == said and ("finalized" in done.stdout) == ("finalized" in said)
