"""The batch script, as text; test_slurm_jobs.py has SLURM read it."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from cluster.job import Sweep, load_job
from cluster.record import JobRecord
from cluster.slurm import backend as slurm
from cluster.sweep import combinations, override
from mvlm.errors import UserError
from tests.cluster.conftest import rendered
from tests.conftest import ROOT

HOSTILE = ["$(touch pwned)", "it's", 'a "b" c', "`touch pwned`", "a;b|c&d", "two words", "\\", "$HOME", "*", "é ü"]
LAUNCHERS = ["srun", "torchrun", "deepspeed", "pdsh"]
MISTAKES = {
    'job.sbatch=["-C h100"]': "write --name or --name=value",
    'job.sbatch=["--constraint h100"]': "write --name or --name=value",
    'job.sbatch=["--array=0-3"]': "which the job's script sets itself",
    "job.ray_address=http://127.0.0.1:8265": "which the slurm back-end cannot honour",
    "job.run=nowhere.toml": "job.run names nowhere.toml",
    "job.logs='a\\b'": "cannot write to a\\b, because of its backslash",
    'job.launcher=pdsh job.logs="a b"': "pdsh cannot work with the path 'a b'",
    "job.launcher=pdsh job.container=image.sqsh": "which the launcher pdsh cannot enter",
    "job.launcher=deepspeed job.container=image.sqsh": "which the launcher deepspeed cannot enter",
}


def render(job, *words):
    out = rendered(job, "slurm", *words)
    subprocess.run(["bash", "-n"], input=out, text=True, check=True)
    return out


def function(script, name):
    """The lines of a function of the script."""
    return re.search(rf"^{name}\(\) {{.*?^}}", script, re.MULTILINE | re.DOTALL)[0]


def array(script, name):
    """The words of an array that the script assigns, as bash reads them."""
    assignment = re.search(rf"^ *{name}=\(.*?^ *\)", script, re.MULTILINE | re.DOTALL)[0]
    done = subprocess.run(
        ["bash", "-c", f'{assignment}\nprintf "%s\\0" "${{{name}[@]}}"'], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_the_example_is_rendered_as_a_person_would_write_it(cluster, monkeypatch):
    monkeypatch.chdir(ROOT)
    script = render("cluster/slurm.toml", "data.train=/data/shards/train")
    assert script + "\n" == (ROOT / "tests/cluster/slurm_example.sbatch").read_text()


def test_the_tasks_of_an_array_do_not_share_a_run(job, tmp_path):
    script = render(job)
    done = subprocess.run(
        ["bash", "-c", script], env={"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "8"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "") and "submit it without --array\n" in done.stdout
    assert not (tmp_path / "logs").exists()


def ending(script, folder, restarts, code=75, state="RUNNING"):
    """Run the end of the script, after its launcher; its exit code and output."""
    found = f"restarts={restarts}; number={restarts + 1}; job=7; logs={folder}; run={folder}; code={code}\n"
    found += 'attempt=$logs/attempt-$(printf "%03d" $number); mkdir -p "$attempt"; touch "$attempt/exit-$code"\n'
    found += f'scontrol() {{ echo "$1 JobState={state} Requeue=1 Restarts=$restarts "; }}\n'
    text = "set -euo pipefail\n" + found + script[script.index("# The ranks' own codes") :]
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_restarts_without_a_new_step_end_the_job(cluster, job, tmp_path):
    script, stuck = render(job, "job.requeue=9"), "3 restarts in a row have made no step beyond"
    checkpoints = tmp_path / "checkpoints"

    def requeues(restarts, code=75):
        returned, said = ending(script, tmp_path, restarts, code)
        assert returned == code and (stuck in said) != ("requeue JobState" in said)
        return stuck not in said

    assert requeues(0)  # before its first step
    (checkpoints / "step_00000000").mkdir(parents=True)
    (checkpoints / "latest").write_text("step_00000000")
    assert requeues(1) and requeues(2, code=137) and not requeues(3)
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "loss": 2.5, "lr": 1}\n{"step": 8, "eval/tr": 9}\n')
    assert requeues(3)
    (checkpoints / "latest").write_text("step_00000010")
    assert requeues(4) and requeues(5) and requeues(6)
    assert not requeues(7) and f"{stuck} 10, so the job ends" in ending(script, tmp_path, 7)[1]
    (checkpoints / "latest").write_text("step_00000011")
    assert requeues(7)
    assert ending(script, tmp_path, 8, code=0) == (0, "cluster: restart 8 of 7 ends with 0\n")


def test_a_job_that_outlasts_its_limit_says_why_it_is_not_started_again(cluster, job, tmp_path):
    said = ending(render(job), tmp_path, 0, code=70, state="COMPLETING Reason=TimeLimit Dependency=(null)")[1]
    assert "SLURM's limit has ended job 7" in said and "requeue JobState" not in said


def test_a_run_that_was_rolled_back_need_not_pass_its_former_last_step(cluster, job, tmp_path):
    script, metrics = render(job, "job.requeue=9"), tmp_path / "metrics.jsonl"
    (tmp_path / "checkpoints" / "step_00000090").mkdir(parents=True)
    metrics.write_text('{"step": 90, "loss": 2.5}\n')
    for restarts in range(5):
        step = 10 * restarts + 10
        (tmp_path / "checkpoints" / "latest").write_text(f"step_{step:08d}")
        metrics.write_text(f'{metrics.read_text()}{{"step": {step}, "loss": 2.5}}\n')
        assert "requeue JobState" in ending(script, tmp_path, restarts)[1]
        assert (tmp_path / f"attempt-{restarts + 1:03d}" / "step").read_text() == f"{step}\n"


def test_a_command_without_steps_is_restarted_as_often_as_the_job_allows(cluster, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text('[job]\nname = "scores"\ncommand = ["score", "shards", "--checkpoint", "run"]\nrequeue = 5\n')
    script = slurm.render(load_job(job), [])
    assert ["requeue JobState" in ending(script, tmp_path, restarts)[1] for restarts in range(6)] == [True] * 5 + [
        False
    ]


@pytest.mark.parametrize("override", MISTAKES)
@pytest.mark.parametrize("command", ["render", "submit"])
def test_settings_that_slurm_cannot_honour_are_refused_in_one_sentence(cluster, job, command, override):
    code, out, err = cluster(command, job, "--on", "slurm", *re.split(" (?=job)", override))
    assert (code, out) == (1, "") and MISTAKES[override] in err and err.count("\n") == 1
    assert not (job.parent / "logs").exists()


@pytest.fixture
def queue_of_one(tmp_path, monkeypatch):
    """Every submission becomes job 17, which soon ends."""
    (tmp_path / "bin").mkdir()
    for name, answer in (("sbatch", "echo 17"), ("squeue", "true")):
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/sh\n{answer}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def test_only_its_owner_can_read_the_script(job, tmp_path, queue_of_one):
    """It holds job.environment, which may have tokens."""
    (tmp_path / "logs").mkdir()
    script = tmp_path / "logs/job.sbatch"
    script.write_text("left by an earlier version")
    assert slurm.submit(load_job(job, ["job.environment.WANDB_API_KEY=secret"]), []) == 0
    assert "secret" in script.read_text() and script.stat().st_mode & 0o777 == 0o600
    others = [path for path in script.parent.rglob("*") if path.is_file() and path != script]
    assert not any(b"secret" in path.read_bytes() for path in others)


def test_a_sweep_with_other_values_does_not_reuse_the_runs_of_the_first(job, tmp_path, queue_of_one):
    """A finished run would count as done with values that were never tried."""
    text = job.read_text() + '[sweep]\nvalues = {{ "optim.lr" = [1e-4, 3e-4], "run.seed" = [1, 2{}] }}\n'
    job.write_text(text.format(""))
    assert slurm.submit(load_job(job), []) == 0
    job.write_text(text.format(", 3"))
    render(job)  # none has begun
    (tmp_path / "logs/001/attempt-001").mkdir()
    render(job)  # the first two are the same
    (tmp_path / "logs/002/attempt-001").mkdir()
    with pytest.raises(UserError, match=r"Run 002 of small has begun with optim.lr=0.0003 run.seed=1, and would"):
        render(job)
    job.write_text(text.format("").replace(", 3e-4", ""))
    assert slurm.submit(load_job(job), []) == 0  # without run 002
    job.write_text(text.format(", 3"))
    with pytest.raises(UserError, match=r"Run 002 of small has begun with optim.lr=0.0003 run.seed=1, and would"):
        render(job)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_secret_given_by_reference_is_read_on_the_node(job, launcher, monkeypatch):
    script = render(job, f"job.launcher={launcher}", "job.environment.GREETING=env:MVLM_TEST_WORD")
    monkeypatch.setenv("MVLM_TEST_WORD", "two words")
    if launcher in ("deepspeed", "pdsh"):
        lines = re.search(r"variables=\(.*?\n  \)", script, re.DOTALL)[0] + '\nprintf "%s\\n" "${variables[@]}"'
    else:
        lines = re.search(r"^export GREETING=.*", script, re.MULTILINE)[0] + "\nenv"
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert "GREETING=two words" in done.stdout.splitlines()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_node_that_cannot_begin_says_why_and_the_attempt_has_an_exit_code(job, tmp_path, launcher):
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to(sys._base_executable)  # which has no mvlm

    def begin(*words):
        script = render(job, f"job.launcher={launcher}", *words)
        found = f"set -euo pipefail\nattempt={tmp_path}; hosts=(n1); restarts=0; SLURM_JOB_ID=1\n"
        found += script[script.index("refuse() {") : script.index("command=(")]
        return subprocess.run(["bash", "-c", found], cwd=tmp_path, env={}, capture_output=True, text=True)

    for words, said in (
        (["job.environment.KEY=env:ABSENT"], "has not been given ABSENT: it is the value of job.environment.KEY; name"),
        ([f"job.venv={tmp_path}/venv"], f'cannot import mvlm with "{tmp_path}/venv/bin/python": set job.venv to one'),
    ):
        (tmp_path / "exit_code").unlink(missing_ok=True)
        done = begin(*words)
        assert (done.returncode, (tmp_path / "exit_code").read_text()) == (1, "1\n")
        assert done.stdout.startswith("cluster: ") and said.replace('"', "") in done.stdout


def test_the_logs_show_why_slurm_could_not_start_a_job(cluster, tmp_path):
    JobRecord("small", "slurm", str(tmp_path / "run"), "host", job_id="17").save(tmp_path)
    (tmp_path / "slurm-17.log").write_text("module: command not found\n")
    assert cluster("logs", tmp_path) == (0, f"==> {tmp_path}/slurm-17.log <==\nmodule: command not found\n", "")
    (tmp_path / "003").mkdir()
    JobRecord("small", "slurm", str(tmp_path / "run/003"), "host", job_id="18_3").save(tmp_path / "003")
    (tmp_path / "slurm-18_3.log").write_text("no such partition\n")
    assert cluster("logs", tmp_path / "003")[1] == f"==> {tmp_path}/slurm-18_3.log <==\nno such partition\n"


def test_a_machine_without_slurm_is_reported(cluster, job, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = cluster("submit", job, "--on", "slurm")
    assert code == 1 and err.startswith("cluster: There is no sbatch on this machine") and err.count("\n") == 1
    assert "No job has been submitted" in cluster("status", job)[2]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_shell_runs_nothing_from_the_job_file(cluster, job, tmp_path, launcher):
    overrides = [f"data.train={text}" for text in HOSTILE]
    variables = [f"job.environment.PYTHON{number}={text}" for number, text in enumerate(HOSTILE)]
    script = render(job, f"job.launcher={launcher}", *overrides, *variables)
    train = ["train", f"{tmp_path}/logs/run.toml", "--deepspeed_config", f"{tmp_path}/logs/deepspeed.json"]
    assert array(script, "command")[1:] == ["-m", "mvlm", *train, *overrides]
    exports = re.findall(r"^export PYTHON\d=.*", script, re.MULTILINE)
    if launcher in ("deepspeed", "pdsh"):  # DeepSpeed passes on what is exported, with quotes of its own
        given = [f"PYTHON{number}={text}" for number, text in enumerate(HOSTILE)]
        assert not exports and array(script, "variables")[-len(given) :] == given
    else:
        echo = [f'printf "%s\\0" "$PYTHON{number}"' for number in range(len(HOSTILE))]
        done = subprocess.run(
            ["bash", "-c", "\n".join([*exports, *echo])], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.split("\0")[:-1] == HOSTILE
    assert not (tmp_path / "pwned").exists()


def test_each_launcher_starts_the_same_ranks(cluster, job):
    launch = {
        name: function(render(job, f"job.launcher={name}", "job.cpus_per_process=3"), "launch") for name in LAUNCHERS
    }
    assert "--ntasks=$((${#hosts[@]} * 2)) --ntasks-per-node=2 " in launch["srun"]
    assert "--cpus-per-task=3 " in launch["srun"]
    assert (
        "--ntasks-per-node=1 " in launch["torchrun"]
        and "--cpus-per-task=6 " in launch["torchrun"]
        and "--nproc-per-node 2" in launch["torchrun"]
    )
    assert "--launcher slurm" in launch["deepspeed"] and "slots=2" in launch["deepspeed"]
    assert "--launcher pdsh" in launch["pdsh"] and "slots=2" in launch["pdsh"]
    assert all("cluster.rank" in text and '"$attempt"' in text for text in launch.values())


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["job.processes_per_node=2"], ["--ntasks-per-node=2", "--nodes=1", "--requeue", "--signal=B:USR1@120"]),
        (["job.nodes=4", "job.min_nodes=3"], ["--nodes=3-4"]),
        (["job.requeue=0"], ["--no-requeue"]),
        (["job.time=1-12", "job.warning_seconds=600"], ["--time=1-12", "--signal=B:USR1@600"]),
        (["job.partition=a b", 'job.qos=q"x\\'], ['--partition="a b"', r'--qos="q\"x\\"']),
        (['job.sbatch=["--comment=$(x) y", "--exclusive"]'], ['--comment="$(x) y"', "--exclusive"]),
    ],
)
def test_directives(cluster, job, words, lines):
    script = render(job, *words)
    assert set(lines) <= {line.removeprefix("#SBATCH ") for line in script.splitlines()}


@pytest.mark.parametrize(("request_", "line"), [("gres", "--gres=gpu:4"), ("gpus-per-node", "--gpus-per-node=4")])
def test_gpus_are_requested_in_the_clusters_own_way(cluster, job, request_, line):
    assert "--cpu-bind" not in function(render(job), "launch"), "on the CPU SLURM's own choice stands"
    job.write_text(job.read_text().replace("processes_per_node = 2", "gpus_per_node = 4"))
    script = render(job, f"job.gpu_request={request_}")
    assert f"#SBATCH {line}\n" in script and "DS_ACCELERATOR" not in script and "--ntasks-per-node=4" in script


def test_a_container_sees_what_the_run_reads_and_writes(cluster, job, tmp_path):
    shards = tmp_path / "shards here"
    shards.mkdir()
    words = ["job.container=/images/my image.sqsh", "job.environment.A=1", f"data.train={shards}", "run.dir=/runs/mine"]
    script = render(job, *words)
    options = shlex.split(function(script, "launch").partition("srun")[2])
    assert "--container-image=/images/my image.sqsh" in options and f"--container-workdir={ROOT}" in options
    mounts = next(word for word in options if word.startswith("--container-mounts=")).partition("=")[2].split(",")
    assert mounts == [f"{path}:{path}" for path in (ROOT, tmp_path / "logs", "/runs/mine", shards)]
    assert "MASTER_ADDR,MASTER_PORT" in script and "export PATH" not in script


def test_the_interpreter_comes_from_the_virtual_environment(cluster, job):
    assert "export PATH='/my venv/bin':$PATH" in render(job, "job.venv=/my venv")
    assert f"export PATH={sys.executable.rpartition('/')[0]}:$PATH" in render(job)


def test_the_numbers_of_attempts_continue(cluster, job):
    assert "number=$((1 + restarts))" in render(job)
    (job.parent / "logs/attempt-004").mkdir(parents=True)
    assert "number=$((5 + restarts))" in render(job)


SWEEP = """
[sweep]
parallel = 2
values."optim.lr" = [1e-3, 1e-4]
values."data.tokenizer" = ["auto", "it's $(touch pwned)"]
"""


def test_a_sweep_is_an_array_with_a_table_of_settings(cluster, job):
    job.write_text(job.read_text() + SWEEP)
    script = render(job, "train.steps=3", "run.dir=runs/many")
    assert "#SBATCH --array=0-3%2\n" in script and "slurm-%A_%a.log" in script
    table = re.search(r"^case .*?^esac", script, re.MULTILINE | re.DOTALL)[0]
    show = f'SLURM_ARRAY_TASK_ID=3\n{table}\nprintf "%s\\0" "$task" "${{settings[@]}}"'
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    given = ["train.steps=3", "run.dir=runs/many", "optim.lr=0.0001", 'data.tokenizer="it\'s $(touch pwned)"']
    assert done.stdout.split("\0")[:-1] == ["003", *given, 'run.dir="runs/many/003"']


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("grace_steps = 5", "sweep.grace_steps is 5, which the slurm back-end cannot honour"),
        ("reduction = 4", "sweep.reduction is 4"),
        ('metric = "eval/r1"', "sweep.metric is 'eval/r1'"),
        ('values."run.dir" = ["a"]', "sweep.values has run.dir"),
    ],
)
def test_what_an_array_cannot_do_for_a_sweep_is_named(cluster, job, line, message):
    job.write_text(job.read_text() + f'[sweep]\nvalues."optim.lr" = [1]\n{line}\n')
    code, _, err = cluster("render", job, "--on", "slurm")
    assert code == 1 and message in err and err.count("\n") == 1


def test_combinations_are_all_or_a_reproducible_sample():
    values = {"a.x": [1, 2, 3], "b.y": ["u", "v"]}
    every = combinations(Sweep(values))
    assert [tuple(picked.values()) for picked in every] == [(x, y) for x in (1, 2, 3) for y in ("u", "v")]
    drawn = combinations(Sweep(values, samples=4))
    assert (
        len(drawn) == 4 and all(picked in every for picked in drawn) and drawn == combinations(Sweep(values, samples=4))
    )
    assert len({tuple(picked.values()) for picked in drawn}) == 4
    assert combinations(Sweep(values, samples=99)) == every


@pytest.mark.parametrize("value", [1, 1e-5, True, 'it\'s "so" \\ \x7f ü', [1.5, "a"], {"a b": [1, {"c": False}]}])
def test_values_of_a_sweep_are_written_as_toml(value):
    name, _, text = override("a.b", value).partition("=")
    assert name == "a.b" and tomllib.loads(f"value = {text}")["value"] == value


def test_ranks_are_bound_near_their_gpus(job):
    assert "--cpu-bind" not in function(render(job), "launch"), "on the CPU SLURM's own choice stands"
    job.write_text(job.read_text().replace("processes_per_node = 2", "gpus_per_node = 4"))
    launched = {name: function(render(job, f"job.launcher={name}"), "launch") for name in LAUNCHERS}
    for name in ("srun", "deepspeed"):
        assert "--distribution=block:block --cpu-bind=cores --mem-bind=local" in launched[name]
    assert "--cpu-bind=none" in launched["torchrun"]
    assert not any("--gpu-bind" in launch for launch in launched.values())
