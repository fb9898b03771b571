"""Jobs that make shards: what is submitted, how a wrong job file is refused, and the tasks on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.job import log_folder_of
from cluster.ray.process import Runner
from cluster.record import JobRecord
from cluster.shard import load, ray_variables
from tests.cluster.slurm_fixture import wait_for
from tests.conftest import ROOT

JOB = """
[shard]
name = "photos"
command = ["folder", "in", "--out", "out dir", "--shard-mb", "0.01"]
tasks = 3
environment = { TOKEN = "a b" }
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "photos.toml"
    path.write_text(JOB)
    return path


def test_an_array_makes_the_parts_and_a_dependent_job_joins_them(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fake sbatch keeps the scripts, and bash runs them as SLURM would, with a program that records its words."""
    for name, text in {
        "sbatch": f'#!/bin/sh\\ncp "$2" {tmp_path}/$$.got\\nls {tmp_path}/*.got | wc -l',
        "squeue": '#!/bin/sh\\n[ "$3" = --jobs=1,2 ] && echo "2|PENDING||Dependency|0:00|1:00:00"',
        "python": f'#!/bin/sh\\nprintf "%s|" "$TOKEN" "$@" >>{tmp_path}/ran\\necho >>{tmp_path}/ran',
    }.items():
        path = tmp_path / "venv/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("\\n", "\n"))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/venv/bin:{os.environ['PATH']}")
    assert main(["submit", str(job), "--on", "slurm", "shard.venv=venv", 'shard.time="1:00:00"']) == 0
    record = json.loads((tmp_path / "runs/photos/logs/job.json").read_text())
    assert (record["job_id"], record["makes_shards"]) == ("1,2", True)
    capsys.readouterr()
    assert main(["status", str(job)]) == 0
    assert capsys.readouterr().out == "photos: job 1,2 is PENDING (Dependency)\n"
    tasks = "2|PENDING||Dependency|0:00|1:00:00\\n1_3|PENDING||Priority|0:00|1:00:00\\n1_2|RUNNING|n1||0:09|1:00:00"
    (tmp_path / "venv/bin/squeue").write_text(f"#!/bin/sh\nprintf '{tasks}\\n'\n")
    assert main(["status", str(job)]) == 0
    assert capsys.readouterr().out == "photos: job 1,2 is RUNNING, 1 of 3 tasks in the queue\n"
    assert main(["submit", str(job), "--on", "slurm"]) == 1
    assert "photos is in the queue already, as job 1,2" in capsys.readouterr().err
    parts, join = ((tmp_path / "runs/photos/logs" / name).read_text() for name in ("parts.sbatch", "join.sbatch"))
    assert "#SBATCH --array=1-3\n" in parts and "#SBATCH --time=1:00:00\n" in parts and "--array" not in join
    assert "#SBATCH --dependency=afterany:1\n" in join
    for script, task in ((parts, "1"), (parts, "3"), (join, "")):
        subprocess.run(["bash", "-c", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": task}, check=True)
    words = "a b|-m|data_tools|shard|folder|in|--out|out dir|--shard-mb|0.01|--workers|1|"
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran == [f"{words}--part|1/3|", f"{words}--part|3/3|", words]


def test_an_array_is_cancelled_if_the_job_that_would_join_its_parts_is_refused(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For instance because a limit on jobs leaves room only for the array."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "sbatch": "grep -q afterany $2 && { echo limit >&2; exit 1; }; echo 7",
        "scancel": f"echo $@ >{tmp_path}/removed",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert main(["submit", str(job), "--on", "slurm"]) == 1 and "(limit)" in capsys.readouterr().err
    assert (tmp_path / "removed").read_text() == "7\n" and not (tmp_path / "runs/photos/logs/job.json").exists()


def test_the_joining_job_waits_for_the_parts_and_for_the_dependencies_of_the_array(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", str(job), "--on", "slurm", 'shard.sbatch=["--dependency=afterok:9"]']) == 0
    waits = [line for line in capsys.readouterr().out.splitlines() if "dependency" in line]
    assert waits == ["#SBATCH --dependency=afterok:9", "#SBATCH --dependency=afterok:9,afterany:ARRAY"]


@pytest.mark.parametrize(
    "override, said",
    [
        ("shard.taks=2", "taks"),
        ("train.steps=2", "begin it with shard."),
        ("shard.tasks=0", "must be 1 or more"),
        ('shard.command=["folder"]', "--out"),
        ('shard.name="a b"', "use letters"),
        ('shard.command=["folder", "in", "--out", "o", "--workers", "9"]', "--workers, which the job sets itself"),
        ('shard.command=["folder", "in", "--out", "o", "--part=1/2"]', "--part, which the job sets itself"),
        ("shard.venv=nowhere", "shard.venv names nowhere, where there is no bin/python to run"),
        ('shard.sbatch=["-C x"]', "cluster: sbatch has '-C x': write --name"),
    ],
)
def test_a_wrong_job_is_one_sentence(job: Path, capsys: pytest.CaptureFixture[str], override: str, said: str) -> None:
    assert main(["render", str(job), "--on", "slurm", override]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_override_that_takes_text_needs_no_quotes(job: Path) -> None:
    given = load(job, ["shard.time=90", "shard.account=2024", "shard.environment.A=1", "shard.tasks=4"])
    assert (given.time, given.account, given.environment["A"], given.tasks) == ("90", "2024", "1", 4)


def test_render_shows_what_each_back_end_would_run(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for backend, ending in (("local", "--workers 1"), ("ray", "--engine ray --workers 3")):
        assert main(["render", str(job), "--on", backend]) == 0
        assert capsys.readouterr().out.strip().endswith(f"--shard-mb 0.01 {ending}")
    for backend, override in (
        ("local", "shard.partition=gpu"),
        ("local", "shard.ray_address=http://ray"),
        ("local", 'shard.modules=["cuda"]'),
        ("ray", 'shard.modules=["cuda"]'),
    ):
        assert main(["render", str(job), "--on", backend, override]) == 1
        assert f"{override.partition('=')[0]} is " in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["local", "slurm", "ray"])
def test_a_command_unknown_to_its_program_is_not_queued(
    job: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    assert main(["submit", str(job), "--on", backend, 'shard.command=["foldr", "in", "--out", "o"]']) == 1
    error = capsys.readouterr().err
    assert "shard.command is not a command line that works" in error and "foldr" in error and error.count("\n") == 1


def test_on_ray_paths_count_from_this_folder_and_secrets_stay_on_the_nodes(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", str(job), "--on", "ray"]) == 0
    assert capsys.readouterr().out.startswith(f"cd {tmp_path} && exec ")
    variables = ray_variables(load(job, ["shard.environment.KEY=env:MY_KEY"]))
    assert (variables["TOKEN"], variables["KEY"]) == ("a b", "${MY_KEY}")
    assert main(["submit", str(job), "--on", "ray", "shard.environment.KEY=env:MY_KEY"]) == 1
    assert "MY_KEY is not set" in capsys.readouterr().err
    assert Runner().run(["touch", "here"], str(tmp_path)) == 0 and (tmp_path / "here").exists()


def test_a_local_command_that_is_killed_ends_with_the_shells_exit_code(job: Path, tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    python = tmp_path / "venv/bin/python"
    python.write_text("#!/bin/sh\nkill -KILL $$\n")
    python.chmod(0o755)
    assert main(["submit", str(job), "--on", "local", "shard.venv=venv"]) == 137


def test_a_local_command_does_not_outlive_its_submission(job: Path, tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    python = tmp_path / "venv/bin/python"
    python.write_text("#!/bin/sh\ntrap 'touch told; exit 75' TERM\ntouch begun\nwhile true; do sleep 0.1; done\n")
    python.chmod(0o755)
    words = [sys.executable, "-m", "cluster", "submit", str(job), "--on", "local", "shard.venv=venv"]
    submitted = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for((tmp_path / "begun").exists)
    submitted.terminate()
    submitted.wait()
    wait_for((tmp_path / "told").exists)


def test_logs_are_followed_until_the_job_has_left_the_queue(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """squeue lists the job once, and meanwhile a task writes more."""
    logs, squeue = tmp_path / "runs/photos/logs", tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    squeue.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/asked ] && echo more >>{logs}/parts-1.log || echo '7|RUNNING|n1||0:01|1:00'\n"
        f"touch {tmp_path}/asked\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    logs.mkdir(parents=True)
    (logs / "parts-1.log").write_text("one\n")
    (logs / "parts-2.log").write_text("two\n")
    JobRecord("photos", "slurm", str(tmp_path), "here", job_id="7", makes_shards=True).save(logs)
    assert main(["logs", "-f", str(job)]) == 0
    said = "==> parts-1.log <==\none\n==> parts-2.log <==\ntwo\n==> parts-1.log <==\nmore\n"
    assert capsys.readouterr().out == said


def test_scoring_is_an_array_on_slurm_and_tasks_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.toml"
    path.write_text('[score]\nname = "s"\ncommand = ["in", "--checkpoint", "run"]\ntasks = 3\ngpu = true\n')
    assert log_folder_of(path) == load(path).log_folder == Path("runs/s/logs")
    assert main(["render", str(path), "--on", "slurm", "score.workers=2"]) == 0
    parts, join = capsys.readouterr().out.split("#!/bin/bash")[1:]
    assert "-m mvlm score in --checkpoint run --part" in parts and "$SLURM_ARRAY_TASK_ID/3" in parts
    assert join.strip().endswith("-m mvlm score in --checkpoint run")
    assert all("--gpus-per-node=1\n" in script and "--cpus-per-task=2\n" in script for script in (parts, join))
    assert main(["render", str(path), "--on", "ray"]) == 0
    driver, command = capsys.readouterr().out.split(" cluster.ray.parts ")
    assert driver.endswith("-m") and command.startswith("3 1 1 ") and command.endswith("run\n")
    assert main(["render", str(path), "--on", "local"]) == 0
    assert capsys.readouterr().out.endswith("-m mvlm score in --checkpoint run\n")
    assert main(["render", str(path), "--on", "slurm", 'score.command=["in"]']) == 1
    assert "--checkpoint" in capsys.readouterr().err
    assert main(["render", "cluster/scores.toml", "--on", "slurm"]) == 0
    assert "#SBATCH --array=1-16\n" in capsys.readouterr().out


def test_logs_can_go_to_a_folder_with_a_percent_sign(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To SLURM it begins a pattern, such as %x for the name of the job."""
    assert main(["render", str(job), "--on", "slurm", "shard.logs=a 5%x"]) == 0
    written = [line for line in capsys.readouterr().out.splitlines() if "--output" in line]
    assert written == [f'#SBATCH --output="a 5%%x/{name}.log"' for name in ("parts-%a", "join")]


def test_the_example_renders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "cluster/shards.toml", "--on", "slurm", "shard.tasks=128"]) == 0
    assert "#SBATCH --array=1-128\n" in capsys.readouterr().out
