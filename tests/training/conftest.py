"""Runs as a user starts them: in this process on one rank, or under a launcher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from torch.utils.cpp_extension import _get_build_directory

from mvlm.checkpoint.description import SKIPPED
from mvlm.config.load import given_keys, load_config, read_stages
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.training.fit.run import train
from mvlm.training.health.signals import StopRequests
from mvlm.training.validation import Evaluate
from tests.conftest import ROOT, TINY

TOML = str(ROOT / "mvlm/configs/tiny.toml")
FLAT = ["optim.schedule=constant", "optim.warmup_steps=0"]

TrainHere = Callable[..., int]
Staged = Callable[..., Path]


def is_compiled(extension: str) -> bool:
    """Whether one of DeepSpeed's extensions has been compiled, which takes minutes; in CI all have.

    One that another environment compiled would be compiled again for this one's torch.
    """
    folder = Path(_get_build_directory(extension, verbose=False))
    if not any(folder.glob("*.so")):
        return False
    return str(Path(torch.__file__).parent) in (folder / "build.ninja").read_text()


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of this process alone. DeepSpeed cannot be given a second one: no command may close it."""
    dist.init()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "close", lambda: None)
        yield
    dist.close()


@pytest.fixture(scope="module", autouse=True)
def rank_variables(surroundings: None) -> None:
    """Set those of `one_rank` again, which `surroundings` removes after each file of tests."""
    if torch_dist.is_initialized():
        dist.init()


@pytest.fixture
def train_here(one_rank: None, own_signals: None, scenes: Path, tmp_path: Path) -> TrainHere:
    """train_here(run folder, overrides, deepspeed={...}, evaluate=..., stop=...) -> exit code, on one rank in this
    process."""
    return partial(train_in, tmp_path, scenes)


def train_in(
    place: Path,
    scenes: Path,
    folder: Path,
    *overrides: str,
    deepspeed: dict[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    stop: StopRequests | None = None,
) -> int:
    """The same with the DeepSpeed JSON in `place`, for fixtures that several tests share; they call `signals_kept`."""
    file = place / "deepspeed.json"
    file.write_text(json.dumps(deepspeed or {}))
    words = [*TINY, f"data.train={scenes}/train", f"run.dir={folder}", "train.steps=6", *overrides]
    return train(load_config(TOML, words), (str(file), TOML), given_keys(TOML, words), lambda config: evaluate, stop)


@pytest.fixture
def staged(one_rank: None, own_signals: None, scenes: Path, tmp_path: Path) -> Staged:
    """staged(name, stages as TOML, overrides, zero=stage, evaluator=...) -> the folder of a run with these stages."""
    return partial(train_stages, tmp_path, scenes)


def train_stages(
    place: Path,
    scenes: Path,
    name: str,
    stages: str,
    *overrides: str,
    zero: int = 0,
    evaluator: Any = None,
    **json_section: Any,
) -> Path:
    """The same in the folder `place`, for fixtures that several tests share; they call `signals_kept`."""
    folder, toml, file = place / name, place / f"{name}.toml", place / f"zero{zero}.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": zero}} | json_section))
    toml.write_text(Path(TOML).read_text() + "\n" + stages)
    words = staged_words(folder, scenes, *overrides)
    config, given = load_config(toml, words), given_keys(toml, words)
    assert train(config, (str(file), str(toml)), given, evaluator, None, read_stages(toml)) == 0
    return folder


def staged_words(folder: Path, scenes: Path, *overrides: str) -> list[str]:
    return [*TINY, f"data.train={scenes}/train", f"run.dir={folder}", "checkpoint.every=2", *overrides]


def stage(*lines: str) -> str:
    return "\n".join(["[[stage]]", *lines, ""])


class StopAfter(StopRequests):
    """Time is up once the run has logged this step."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__()
        self._run, self._step = run, step

    def time_is_up(self, *seconds: float) -> bool:
        return max(losses_by_step(self._run), default=0) >= self._step


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """poison({position: factor}) multiplies the losses of the batches that begin at these positions."""
    forward = MaskVLM.forward

    def apply(factors: dict[int, float]) -> None:
        def poisoned(self, batch, *beside):
            losses = forward(self, batch, *beside)
            if batch.position_B.is_meta:  # for counting operations
                return losses
            factor = next((f for at, f in factors.items() if (batch.position_B == at).any()), 1.0)
            return {name: loss * factor for name, loss in losses.items()}

        monkeypatch.setattr(MaskVLM, "forward", poisoned)

    return apply


def leave_out(run: Path, *positions: int) -> None:
    """List these batches as bad, as a run does that has met them."""
    run.mkdir()
    (run / SKIPPED).write_text(
        "".join(json.dumps({"position": position, "samples": [{}]}) + "\n" for position in positions)
    )


KEPT = Path(__file__).parent / "kept_runs"

Resume = Callable[..., Path]


def kept_words(folder: Path, *overrides: str) -> list[str]:
    return [f"run.dir={folder}", f"data.train={KEPT / 'shards'}", *overrides]


@pytest.fixture
def resume_kept(one_rank: None, own_signals: None, tmp_path: Path) -> Resume:
    """resume_kept(ZeRO stage, overrides) -> the folder of a copy of that kept run, resumed on one rank."""
    return partial(resume_in, tmp_path)


def resume_in(place: Path, stage: int, *overrides: str) -> Path:
    """The same with the copy in `place`, for fixtures that several tests share; they call `signals_kept`."""
    folder, toml = place / f"zero{stage}", str(KEPT / "run.toml")
    if not folder.exists():
        shutil.copytree(KEPT / f"zero{stage}", folder)
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    deepspeed, words = place / "stage.json", kept_words(folder, *overrides)
    deepspeed.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    assert train(load_config(toml, words), (str(deepspeed), toml), given_keys(toml, words)) == 0
    return folder


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_by_step(run: Path) -> dict[int, tuple[float, ...]]:
    """All losses and the gradient's norm of each step, as last written."""
    names = ("loss", "image", "text", "itc", "itm", "grad_norm")
    return {line["step"]: tuple(line[name] for name in names) for line in read_metrics(run) if "loss" in line}
