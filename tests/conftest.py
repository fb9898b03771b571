"""Shared by all tests: small real shards, a run configuration, and ways to run commands as a user would."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import hypothesis  # noqa: F401 - before gc.freeze(): it asks for referrers, which frozen objects hide
import pytest

from mvlm.config.schema import Config, Data, Objectives
from mvlm.runtime.imports import uncollected
from mvlm.training.health.signals import SIGNALS
from tests.ranks import ROOT, free_port, mvlm, run_ranks

# Children inherit ignored signals, and a background shell and nohup ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin beside the ranks of another test make small products a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without bytecode files, some two hundred processes would recompile everything: a minute and a half of CPU time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

MadeOnce = Callable[[str, Callable[[Path], None]], Path]

FIRST = ("test_slurm_faults.py", "test_parity.py", "test_ray.py", "test_engine.py")
"""Files that take minutes."""
LONG = ("cluster", "training", "benchmarks")
"""Folders whose files take long: started first, so that no process is left with one at the end. They are interleaved,
since tests of clusters mostly wait and those of training compute."""
LATE_AND_LONG = ("test_plan.py", "test_interpreter.py", "test_ray_engine.py", "test_train.py")
"""The longest files of other folders: started before the short ones, which fill the gaps at the end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep imports out of garbage collection, which DeepSpeed runs several times per engine."""
    with uncollected():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = list(dict.fromkeys(item.path for item in items))
    folders = [path.relative_to(ROOT / "tests").parts[0] for path in files]
    places: dict[Path, float] = {}
    for number, (path, folder) in enumerate(zip(files, folders, strict=True)):
        if path.name in FIRST:
            places[path] = FIRST.index(path.name) - len(FIRST)
        elif folder in LONG:
            places[path] = folders[:number].count(folder) / folders.count(folder)
        else:
            places[path] = 0.9 if path.name in LATE_AND_LONG else 1
    items.sort(key=lambda item: places[item.path])


STEERING = ("AWS_", "HF_", "PYTHONPATH", "RAY_ADDRESS", "SLURM_", "TMPDIR", "TORCHELASTIC_", "XDG_")
"""Prefixes of variables with which tests redirect the product; others are set by libraries and the product itself."""


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    """Restore the environment and the working folder after each file, and fail if it would have misled later ones.

    Variables that a command sets for itself and its children, such as RANK, are restored silently.
    """
    variables, folder = dict(os.environ), os.getcwd()
    yield
    found, left = os.getcwd(), dict(os.environ)
    os.chdir(folder)
    changed = {name for name, _ in variables.items() ^ left.items()} - {"PYTEST_CURRENT_TEST"}
    for name in changed:
        if name in variables:
            os.environ[name] = variables[name]
        else:
            del os.environ[name]
    assert found == folder, "a test has changed the working folder"
    astray = sorted(name for name in changed if name.startswith(STEERING))
    assert not astray, f"a test has changed {', '.join(astray)} for later ones"


@contextmanager
def signals_kept() -> Iterator[None]:
    """Restore the signal handlers that training replaces."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def own_signals() -> Iterator[None]:
    with signals_kept():
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[MadeOnce]:
    """made_once(name, make) -> a folder that `make` fills once for all processes of pytest; no test may change it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent
    found: dict[Path, list[tuple[str, int]]] = {}

    def once(name: str, make: Callable[[Path], None]) -> Path:
        out = folder / name
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                make(folder / f"{name}.unfinished")
                (folder / f"{name}.unfinished").rename(out)
        found[out] = written(out)
        return out

    yield once
    for out, before in found.items():
        assert written(out) == before, f"a test has changed {out}, which others read"


def written(folder: Path) -> list[tuple[str, int]]:
    """Each file with its modification time."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def scenes(made_once: MadeOnce) -> Path:
    """A folder with `train` and `eval` shards of synthetic scenes."""
    return made_once("scenes", make_scenes)


def make_scenes(out: Path) -> None:
    from data_tools.__main__ import main

    words = ["synth", "--task", "caption", "--count", "300", "--seed", "3", "--split", "train=0.8,eval=0.2"]
    assert main([*words, "--out", str(out)]) == 0


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from mvlm.data.samples.tokenizer import train_tokenizer

    return train_tokenizer(["red circle top left, blue star bottom right"] * 5, 300)


TINY = [
    "model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2}",
    "model.image_size=32",
    "model.text_args={hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, "
    "max_position_embeddings=64}",
    "model.cross_depth=1",
    "model.cross_heads=2",
    "model.contrastive_width=16",
    "objectives.image_mask_block=1",
    "objectives.itm_group=4",
    "data.vocabulary=300",
    "data.crop_scale=[1,1]",
    "data.flip=false",
    "data.randaugment=[0,0]",
    "data.shuffle=global",  # "auto" measures the disk, and under load two runs may disagree
    "train.global_batch=16",
    "log.every=1",
    "log.tensorboard=false",
]
"""Overrides of mvlm/configs/tiny.toml for a model that takes milliseconds per step."""


def pair_args(config: Config) -> tuple[Data, Objectives, int, int]:
    """The first arguments of `PairDataset`, from a run's configuration: all up to the grid."""
    return config.data, config.objectives, config.model.image_size, config.run.seed


def labelled_args(config: Config) -> tuple[Data, int, int]:
    """The first arguments of `LabelledDataset`: all up to the answers."""
    return config.data, config.model.image_size, config.run.seed


def eval_args(config: Config) -> tuple[int, int]:
    """The arguments of `EvalDataset` between the tokenizer and the limit."""
    return config.data.text_length, config.model.image_size


def mvlm_command(*words: str, ranks: int = 1, launcher: bool = True) -> list[str]:
    """`deepspeed --module mvlm ...` on a free port, or `python -m mvlm ...`."""
    if not launcher:
        return [sys.executable, "-m", "mvlm", *words]
    return [*launcher_command(ranks), "--module", "mvlm", *words]


def launcher_command(ranks: int) -> list[str]:
    """DeepSpeed's launcher on a free port, as a module: if DeepSpeed is only on PYTHONPATH, there is no program."""
    runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
    return [*runner, "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def run_command(command: list[str], timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's root, with threads limited so that two ranks can share a small machine.

    This checkout precedes PYTHONPATH, which may name further packages.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 protocol server on the loopback."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A store with one empty bucket, to which the environment points during the test."""
    pytest.importorskip("s3fs")
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{s3_server}/moto-api/reset", method="POST")).close()
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("bucket")
    yield files
    files.clear_instance_cache()  # including those that the product opened


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mount_disk(size) -> an empty disk of a size such as "3m"."""
    disk = tmp_path / "disk"

    def mount(size: str) -> Path:
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small disk needs root")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def trained(scenes: Path, made_once: MadeOnce) -> Path:
    """A run of a few steps on `scenes`, in which text and image influence each other from the start."""
    return made_once("trained", partial(train_on, scenes))


def train_on(scenes: Path, run: Path) -> None:
    words = [f"data.train={scenes / 'train'}", f"data.eval={scenes / 'eval'}", f"run.dir={run}", "train.steps=12"]
    words += [
        "data.vocabulary=512",
        "model.cross_init_std=0.3",
        "train.global_batch=32",
        "optim.lr=0.003",
        "optim.encoder_lr=0.003",
    ]
    command = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", *TINY, *words]
    done = run_ranks(mvlm, *command, "eval.every=0")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def index(trained: Path, scenes: Path, made_once: MadeOnce) -> Path:
    """An index of both parts of `scenes`, the held-out one first."""
    return made_once("index", partial(make_index, trained, scenes))


def make_index(trained: Path, scenes: Path, out: Path) -> None:
    from mvlm.__main__ import main

    words = ["index", str(scenes / "eval"), str(scenes / "train"), "--checkpoint", str(trained), "--out", str(out)]
    assert main(words) == 0


@pytest.fixture(scope="session")
def loaded(trained: Path) -> Any:
    """The model of `trained`."""
    from mvlm.pretrained.runs import load_run

    return load_run(trained)


@pytest.fixture(scope="session")
def dataset(loaded: Any, scenes: Path) -> Any:
    """The images of `index` in order, with their captions."""
    from mvlm.data.samples.evaluation import EvalDataset
    from mvlm.data.shards.mixture import Mixture
    from mvlm.evaluate.settings import reading_of

    return EvalDataset(Mixture([scenes / "eval", scenes / "train"]), *reading_of(loaded))
