"""Pipelines: the graph, which steps are unchanged, and real processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.attempt import JobAttempt
from cluster.logs import next_attempt
from cluster.pipeline import local
from cluster.pipeline.file import load_pipeline
from cluster.pipeline.graph import Graph
from cluster.pipeline.proof import Proof, is_proven, keys, read_proof, write_proof
from cluster.pipeline.submission import Submission, draft, is_made, prepare
from cluster.pipeline.view import QueueAnswer, log_place, views
from cluster.record import JobRecord, claim
from mvlm.config.toml import as_toml
from mvlm.errors import UserError
from tests.conftest import ROOT

Write = Callable[[str], Path]
CHAIN = """
[pipeline]
name = "chain"
cpus = 4

[[step]]
name = "first"
kind = "command"
command = ["sh", "-c", "cat in.txt > a.txt; echo first >> ran"]
reads = ["in.txt"]
writes = ["a.txt"]

[[step]]
name = "left"
kind = "command"
command = ["sh", "-c", 'tr a-z A-Z < "$0" > left.txt; echo left >> ran', "a.txt"]
writes = ["left.txt"]

[[step]]
name = "right"
kind = "command"
command = ["sh", "-c", 'wc -c < "$0" > right.txt; echo right >> ran', "a.txt"]
writes = ["right.txt"]

[[step]]
name = "last"
kind = "command"
command = ["sh", "-c", "cat left.txt right.txt > last.txt; echo last >> ran"]
reads = ["left.txt", "right.txt"]
writes = ["last.txt"]
"""
HEAD = '[pipeline]\nname = "p"\n'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a pipeline file into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "pipeline.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def chain(write: Write, tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("abc")
    return write(CHAIN)


def step(name: str, **keys: object) -> str:
    """The lines of a step that runs `true` by default."""
    given = {"name": name, "kind": "command", "command": ["true"], **keys}
    return "\n".join(["[[step]]", *(f"{key} = {as_toml(value)}" for key, value in given.items()), ""])


def graph(path: Path, *overrides: str) -> Graph:
    return Graph(load_pipeline(path, overrides))


def submit(path: Path, *overrides: str) -> int:
    return main(["submit", str(path), "--on", "local", *overrides])


def ran(folder: Path) -> list[str]:
    """The steps of the chain that have run since the last call, in order."""
    log = folder / "ran"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_a_step_that_adds_to_an_output_leaves_its_note_beside_it(write: Write, tmp_path: Path) -> None:
    """At submission the folder must not exist yet: shards refuse a place where something is."""
    path = write(
        HEAD
        + step("divide", kind="filter", command=["split", "in"], writes=["corpus"])
        + step("take", reads=["corpus"], writes=["corpus"])
        + step("score", reads=["corpus/eval"], writes=["corpus/eval"])
        + step("report", reads=["corpus"], writes=["corpus/a/report.html"])
    )
    found = graph(path)
    prepare(found, submission := draft(found, [], "local"))
    assert not (tmp_path / "corpus").exists() and not is_made(found, submission, "divide")
    assert {file.name for file in tmp_path.glob("*.json")} == {
        *("corpus.step.json", "corpus.take.step.json", "corpus.score.step.json", "corpus.report.step.json")
    }


def test_a_step_that_can_never_run_is_blocked_however_far_behind_the_failure(chain: Path) -> None:
    """SLURM says that a step two behind a failed one waits."""
    found = graph(chain)
    submission = draft(found, [], "slurm")
    waits = QueueAnswer("waiting", "Dependency")
    answers = {"first": QueueAnswer("running"), "left": QueueAnswer("failed"), "right": waits, "last": waits}
    assert [view.state for view in views(found, submission, answers)] == ["running", "failed", "waiting", "blocked"]


def test_a_step_running_on_another_machine_is_not_taken_for_failed(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = replace(draft(graph(chain), [], "local"), host="elsewhere", pid=os.getpid(), pid_started="0")
    there.folder("first").mkdir(parents=True)
    there.save()
    begun = [JobAttempt(1, time.time())]
    record = JobRecord("first", "local", "", "elsewhere", job_id=there.queued["first"].key, attempts=begun)
    record.save(there.folder("first"))
    assert main(["status", str(chain)]) == 0
    said = capsys.readouterr().out
    assert "running" in said and "failed" not in said and "it was submitted on elsewhere" in said


def test_the_log_of_a_step_is_that_of_its_ranks_unless_it_has_failed_since(chain: Path) -> None:
    submission = draft(graph(chain), [], "local")
    folder = submission.folder("first")
    for number, place in enumerate((folder, folder / "job", folder)):
        attempt = place / f"attempt-{next_attempt(place):03d}"
        attempt.mkdir(parents=True)
        os.utime(attempt, (number, number))
        assert log_place(submission, "first") == place


def test_the_graph_follows_from_inputs_outputs_and_words(write: Write) -> None:
    path = write(
        HEAD
        + step("late", command=["cat", "--file=out/b/x"], reads=["out/a/inner"])
        + step("a", writes=["out/a"])
        + step("b", writes=["./out/b/"])
        + step("score", reads=["out/a"], writes=["out/a"])
        + step("again", reads=["out/a"], writes=["out/a"])
        + step("report", reads=["out/a"], writes=["out/a/report.html"])
        + step("reader", reads=["out/a"])
    )
    found = graph(path)
    assert found.needs == {
        "late": ["a", "b"],
        "a": [],
        "b": [],
        "score": ["a"],
        "again": ["a", "score"],
        "report": ["a", "score", "again"],
        "reader": ["a", "score", "again"],
    }
    assert found.with_dependents(["score"]) == {"score", "again", "report", "reader"}
    places = {name: place for place, name in enumerate(found.order)}
    assert all(places[need] < places[name] for name, needs in found.needs.items() for need in needs)


MOVED_WITH_MORE = {
    "": "., which contains the folder of this command, ",
    "..": ".., which contains the folder of this command, ",
    "/": "/, which contains the folder of this command, ",
    "runs/p": "runs/p, which contains pipeline.logs, ",
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (step("a", partitoin="x"), "unknown key a.partitoin; did you mean a.partition?"),
        (step("a", kind="shards"), "a.kind is 'shards': choose one of 'shard', 'score'"),
        (step("a", reads=["b"], writes=["a"]) + step("b", reads=["a"], writes=["b"]), "waits for"),
        (step("a", reads=["nothing/here"]), "reads nothing/here, which is not there and which no step writes"),
        (step("a", writes=["x"]) + step("b", writes=["x"]), "a and b both write x"),
        (step("a", writes=["x"]) + step("b", writes=["x/y"]), "a and b both write to x"),
        (step("a") + step("a"), "two steps are called a"),
        *((step("a", writes=[path]), "a.writes has " + said) for path, said in MOVED_WITH_MORE.items()),
        (step("a", retries=-1), "a.retries is -1"),
        (step("a", nodes=2), "a.nodes is 2, which a step of kind command does not have"),
        (step("a", memory="lots"), "a.memory is 'lots'"),
        (step("a", time="soon"), "a.time is 'soon'"),
        (
            step("a", kind="index", command=["x"], writes=["y"], processes=2, time="0:30"),
            "a.time is '0:30', and its last",
        ),
        (step("a", kind="index", command=["x"], writes=["y"], gpus=8, processes=2), "a.gpus and a.processes are both"),
        (step("a", kind="train"), "a.run is missing"),
        (
            step("a", kind="preflight", command=[], run="r", deepspeed="d", image="x"),
            "a.image is 'x', which a step of kind preflight does not have",
        ),
        ('venv = "nowhere"\n' + step("a"), "pipeline.venv names nowhere, where there is no bin/python to run"),
        (step("a", kind="index", command=["x"]), "a.writes is missing"),
        (step("a", environment={"K": "env:NO_SUCH_VARIABLE"}), "NO_SUCH_VARIABLE is not set"),
        (step("a", environment={"K": 1}), "a.environment.K is 1: give a string, in quotes."),
        (step("a", cpus=100000), "a.cpus is 100000"),
        ("[step]\nname = 1\n", "double brackets"),
        (step("a") + "[steps]\n", "unknown table [steps]"),
        (step("t", kind="tokenizer", command=["x", "--vocabulary", "3"], writes=["t.json"]), "--vocabulary"),
    ],
)
def test_a_mistake_is_reported_and_nothing_runs(
    write: Write, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(write(HEAD + text)) == 1
    error = capsys.readouterr().err
    assert said in error and all("pipeline.toml: " in sentence for sentence in error.splitlines())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", HEAD, 'pipeline = "x"\n' + step("a")])
def test_a_file_without_a_required_table_is_refused_in_one_sentence(
    write: Write, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(write(text)), "--on", "local"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("has no [[step]]" in error or "pipeline must be a table, not 'x'" in error)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"run": {"dir": "x"}}, "t.settings has run.dir, which is t.writes: remove it."),
        ({"run.dir": "x"}, "t.settings has run.dir, which is t.writes: remove it."),
        ({"run": 5}, "The override 'run=5' is not of the form table.key=value"),
    ],
)
def test_settings_that_a_run_does_not_accept_are_refused(
    write: Write, settings: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"run": "mvlm/configs/tiny.toml", "deepspeed": "ds_configs/cpu.json", "settings": settings}
    assert submit(write(HEAD + step("t", kind="train", command=[], writes=["model"], **run))) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_looking_at_a_pipeline_does_not_need_its_secrets(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(HEAD + step("a", environment={"KEY": "env:MY_KEY"}))
    monkeypatch.setenv("MY_KEY", "secret")
    assert submit(path) == 0
    monkeypatch.delenv("MY_KEY")
    assert main(["status", str(path)]) == 0
    assert main(["cancel", str(path)]) == 1 and "nothing to cancel" in capsys.readouterr().err


def test_an_override_of_an_unknown_step_suggests_the_nearest(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(chain, "frist.cpus=2") == 1
    assert "did you mean first?" in capsys.readouterr().err


def test_a_changed_setting_changes_only_the_keys_that_depend_on_it(chain: Path, tmp_path: Path) -> None:
    before = keys(graph(chain))
    for override, changed in (
        ('left.command=["sh", "-c", "cat a.txt > left.txt"]', {"left", "last"}),
        ("right.environment.LANG=C", {"right", "last"}),
        ("first.retries=9", set()),
        ("last.cpus=2", set()),
    ):
        after = keys(graph(chain, override))
        assert {name for name in before if before[name] != after[name]} == changed
    (tmp_path / "in.txt").write_text("abd")
    assert {name for name, key in keys(graph(chain)).items() if key != before[name]} == set(before)


def test_unchanged_steps_do_not_run_again(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(chain) == 0
    order = ran(tmp_path)
    assert sorted(order) == ["first", "last", "left", "right"] and (order[0], order[-1]) == ("first", "last")
    assert (tmp_path / "last.txt").read_text() == "ABC3\n"
    assert submit(chain) == 0 and ran(tmp_path) == []
    changed = """right.command=["sh", "-c", 'echo 9 > right.txt; echo right >> ran', "a.txt"]"""
    assert submit(chain, changed) == 0
    assert ran(tmp_path) == ["right", "last"]
    assert (tmp_path / "last.txt").read_text() == "ABC9\n" and (tmp_path / "last.txt.old").exists()
    capsys.readouterr()
    assert main(["rerun", str(chain), "right"]) == 0 and ran(tmp_path) == ["right", "last"]
    assert main(["rerun", str(chain), "nobody"]) == 1
    assert "has no step nobody" in capsys.readouterr().err
    assert main(["status", str(chain), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["steps"]
    assert {one["name"]: (one["state"], one["exit_code"]) for one in facts} == {
        "first": ("unchanged", None),
        "left": ("unchanged", None),
        "right": ("done", 0),
        "last": ("done", 0),
    }
    page = (tmp_path / "runs/chain/pipeline/status.html").read_text()
    assert page.count("<rect") == 4 and page.count("<path") == 4 and "http-equiv" not in page and "src=" not in page


FAULTS = (
    HEAD
    + 'cpus = 9\nenvironment = { GREETING = "env:MVLM_TEST_WORD" }\n'
    + step("mistake", command=["sh", "-c", "echo tried >> mistake.log; echo no such thing >&2; exit 1"], writes=["m"])
    + step("behind", command=["sh", "-c", "echo ran > behind.log"], reads=["m"])
    + step(
        "preempted",
        command=[
            "sh",
            "-c",
            "echo tried >> preempted.log; [ -e once ] || { touch once; exit 75; }; echo ${#GREETING} > p",
        ],
        writes=["p"],
    )
    + step("crashes", command=["sh", "-c", "echo tried >> crashes.log; kill -9 $$"], retries=1)
    + step("liar", writes=["not/made"])
    + step("late", command=["sleep", "1000"], time="0:02", retries=0)
    + step("absent", command=["./no-such-program"])
)


def test_preemptions_and_crashes_are_tried_again_and_mistakes_are_not(
    write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVLM_TEST_WORD", "hush-4711")
    path = write(FAULTS)
    assert submit(path) == 1
    tries = {log.stem: log.read_text().count("tried") for log in tmp_path.glob("*.log")}
    assert tries == {"mistake": 1, "preempted": 2, "crashes": 2}
    assert "behind has not run, because of mistake" in capfd.readouterr().err
    assert main(["status", str(path), "--json"]) == 0
    facts = {one["name"]: one for one in json.loads(capfd.readouterr().out)["steps"]}
    assert {name: (one["state"], one["exit_code"]) for name, one in facts.items()} == {
        "mistake": ("failed", 1),
        "behind": ("blocked", None),
        "preempted": ("done", 0),
        "crashes": ("failed", 137),
        "liar": ("failed", 1),
        "late": ("stopped", 75),
        "absent": ("failed", 1),
    }
    assert "no such thing" in Path(facts["mistake"]["log"]).read_text()
    assert "not/made is not there" in Path(facts["liar"]["log"]).read_text()
    assert "no-such-program" in Path(facts["absent"]["log"]).read_text()
    assert main(["logs", str(path), "mistake"]) == 0 and "no such thing" in capfd.readouterr().out
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert (tmp_path / "p").read_text() == "9\n"  # a secret is read where the step starts, and stands in no file
    assert len(files) > 20 and not [file for file in files if b"hush-4711" in file.read_bytes()]


SLOW = HEAD + step(
    "slow",
    command=["sh", "-c", "echo began >> began; while [ ! -e go ]; do sleep 0.1; done; echo x > out"],
    writes=["out"],
)


def driver(path: Path, *before: str) -> subprocess.Popen[bytes]:
    """Submit it on this machine; the words of `before` precede the command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [*before, sys.executable, "-m", "cluster", "submit", str(path), "--on", "local"]
    return subprocess.Popen(words, cwd=path.parent, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_step_outlives_its_driver_and_is_cancelled_and_resumed(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(SLOW)
    first = driver(path)
    wait_for((tmp_path / "began").exists)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = driver(path)
    wait_for(lambda: Submission.load(tmp_path / "runs/p/pipeline").pid == second.pid)
    assert submit(path) == 1 and "is running" in capsys.readouterr().err
    assert main(["cancel", str(path)]) == 0 and second.wait() == 75
    assert (tmp_path / "began").read_text() == "began\n"  # the second has taken over what the first began
    assert main(["cancel", str(path)]) == 1 and "not running" in capsys.readouterr().err
    (tmp_path / "go").touch()
    assert submit(path) == 0 and (tmp_path / "began").read_text() == "began\nbegan\n"


def test_the_logs_of_a_step_can_be_followed_before_it_begins(write: Write, tmp_path: Path) -> None:
    path = write(SLOW + step("behind", command=["sh", "-c", "cat out; echo and more"], reads=["out"]))
    submitted = driver(path)
    wait_for((tmp_path / "began").exists)
    words = [sys.executable, "-m", "cluster", "logs", str(path), "-f", "behind"]  # the step may follow the option
    followed = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        followed.wait(5)
    (tmp_path / "go").touch()
    assert submitted.wait() == 0
    assert followed.communicate()[0].endswith(b"x\nand more\n") and followed.returncode == 0


def test_a_driver_under_nohup_ignores_the_hangup(write: Write, tmp_path: Path) -> None:
    process = driver(write(SLOW), "nohup")
    wait_for((tmp_path / "began").exists)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)  # it looks for a stop ten times a second
    (tmp_path / "go").touch()
    assert process.wait() == 0 and (tmp_path / "out").exists()


def test_a_second_submission_at_the_same_time_changes_nothing(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(chain) == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    with claim(tmp_path / "runs/chain/pipeline"):
        assert submit(chain, 'first.command=["true"]') == 1
    assert "A pipeline is running with the log folder" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


def test_an_output_that_another_pipeline_is_making_is_not_moved_aside(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(SLOW)
    first = driver(path)
    wait_for((tmp_path / "began").exists)
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace('name = "p"', 'name = "q"').replace("echo x >", "echo y >"))
    assert submit(other) == 1
    error = capsys.readouterr().err
    assert "slow would write out, which another pipeline makes: " in error and f"as process {first.pid}" in error
    (tmp_path / "go").touch()
    assert first.wait() == 0 and (tmp_path / "out").read_text() == "x\n"
    assert submit(other) == 0 and (tmp_path / "out").read_text() == "y\n"


def test_edits_to_the_file_while_steps_wait_apply_to_the_next_submission(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behind = step("behind", command=["sh", "-c", "cat out; echo old >last"], reads=["out"], writes=["last"])
    path = write(SLOW + behind)
    first = driver(path)
    wait_for((tmp_path / "began").exists)
    path.write_text(path.read_text().replace("echo old", "echo new").replace('"behind"', '"other"'))
    assert main(["status", str(path)]) == 0 and "behind" in capsys.readouterr().out
    (tmp_path / "go").touch()
    assert first.wait() == 0 and (tmp_path / "last").read_text() == "old\n"
    assert main(["rerun", str(path), "behind"]) == 1
    assert "no step behind: it has slow, other." in capsys.readouterr().err
    assert submit(path) == 0 and (tmp_path / "last").read_text() == "new\n"


def test_the_command_of_a_killed_step_saves_and_ends(write: Write, tmp_path: Path) -> None:
    saving = "trap 'kill $!; echo saved >saved; exit 75' TERM; sleep 60 & echo $PPID >began; wait"
    first = driver(write(HEAD + step("saves", command=["sh", "-c", saving], writes=["out"])))
    wait_for(lambda: (tmp_path / "began").exists() and (tmp_path / "began").read_text().endswith("\n"))
    os.kill(int((tmp_path / "began").read_text()), signal.SIGKILL)
    assert first.wait() == 128 + signal.SIGKILL
    wait_for((tmp_path / "saved").exists)


def test_a_step_killed_before_it_could_record_its_finished_output_is_done(write: Write, tmp_path: Path) -> None:
    """Its command would refuse to make an existing output again; an older output does not count as its."""
    (tmp_path / "in").touch()
    own, foreign = (step(n, kind="tokenizer", command=["in"], reads=["in"], writes=[n]) for n in ("own", "foreign"))
    adds = step("adds", kind="filter", command=["takedown", "corpus"], reads=["corpus"], writes=["corpus"])
    (tmp_path / "foreign").write_text("{}")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/rows").touch()
    found = graph(write(HEAD + own + foreign + adds))
    for _ in range(2):  # submitted, and again
        new = draft(found, [], "local")
        prepare(found, new)
        (tmp_path / "own").write_text("{}")
    assert [is_made(found, new, name) for name in ("own", "foreign", "adds")] == [True, False, False]
    assert local.submit(found, replace(new, order=["own"], queued={"own": new.queued["own"]})) == 0
    assert is_proven(found, "own", new.queued["own"].key)
    assert (tmp_path / "runs/p/pipeline/own/attempt-001/launcher.log").read_text() == ""  # nothing has run


def test_concurrent_steps_may_write_the_same_proof(tmp_path: Path) -> None:
    proof, path = Proof("key", done=True, outputs={"run": "digest"}), str(tmp_path / "run.step.json")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_proof(path, proof), range(100)))
    assert read_proof(path) == proof and [file.name for file in tmp_path.iterdir()] == ["run.step.json"]


def test_a_submission_reads_back_as_it_was_written(chain: Path) -> None:
    found = graph(chain)
    new = draft(found, [], "local")
    Path(new.logs).mkdir(parents=True)
    new.save()
    assert Submission.load(Path(new.logs)) == new
    (Path(new.logs) / "pipeline.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        Submission.load(Path(new.logs))
