"""`mvlm train` on one device, as users start it: python benchmarks/gpu/trainer.py FILE --work FOLDER [--rehearse]

On a small synthetic corpus: in fp32 on the CPU, the reference; in fp32 on the GPU; in bf16 at stage 0 and under ZeRO-1,
2 and 3; and, with `train.deterministic`, an undisturbed run and one that is killed by SIGKILL and resumed, whose losses
and checkpoints must be equal in every bit. DeepSpeed's launcher starts the runs, several at once. Every run and every
promise is a line of FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil

from benchmarks.gpu.record import Line, Record, seconds_left
from mvlm.checkpoint.layout import read_index
from mvlm.runtime.launch import free_port

ROOT = Path(__file__).parents[2]
NAMES = ("loss", "image", "text", "itc", "itm", "grad_norm")
BF16 = {"bf16": {"enabled": True}}
CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
REFERENCE = "fp32, stage 0, on the CPU"
COMPARED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    REFERENCE: ({"zero_optimization": {"stage": 0}}, CPU),
    "fp32, stage 0": ({"zero_optimization": {"stage": 0}}, {}),
    **{f"bf16, stage {stage}": (BF16 | {"zero_optimization": {"stage": stage}}, {}) for stage in range(4)},
}
"""DeepSpeed JSON and environment of the runs whose losses are compared."""
BOUNDS = {"fp32": (1e-3, 1e-2), "bf16": (2e-2, 1e-1)}
"""By precision: relative differences from the reference's losses, and gradient norms, that the first steps may have."""
EARLY = 5
"""Steps that are compared; later, rounding has changed what is learnt."""


class Steps(NamedTuple):
    """How long compared and killed runs are, how often killed runs save, and after which step they are killed."""

    compared: int = 12
    killed: int = 60
    saved_every: int = 10
    killed_at: int = 25


REHEARSED = Steps(6, 16, 4, 6)
KILLED = {f"bf16, stage {stage}": BF16 | {"zero_optimization": {"stage": stage}} for stage in (1, 3)}
TINIER = [
    "model.vision_args={patch_size=16, embed_dim=32, depth=1, num_heads=2}",
    "model.image_size=32",
    "model.text_args={hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, "
    "max_position_embeddings=64}",
    "model.cross_depth=1",
    "model.cross_heads=2",
    "model.contrastive_width=16",
    "objectives.image_mask_block=1",
    "train.global_batch=16",
]
"""Overrides for a model that takes milliseconds per step on a CPU."""


class Trainer:
    """Starts runs on one corpus."""

    def __init__(self, work: Path, rehearse: bool) -> None:
        self.work, self.rehearse, self.steps = work, rehearse, REHEARSED if rehearse else Steps()
        work.mkdir(parents=True, exist_ok=True)

    def make_corpus(self) -> None:
        words = ["synth", "--task", "caption", "--count", "400", "--seed", "3", "--out", str(self.work / "shards")]
        subprocess.run([sys.executable, "-m", "data_tools", *words], cwd=ROOT, check=True)

    def start(
        self, name: str, content: dict[str, Any], surroundings: dict[str, str], *overrides: str
    ) -> subprocess.Popen[bytes]:
        """Start a run in a folder of that name, or resume it."""
        folder = self.work / "runs" / name.replace(", ", "-").replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "deepspeed.json").write_text(json.dumps(content))
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "1"]
        launcher += ["--master_port", str(free_port()), "--module", "mvlm"]
        words = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", str(folder / "deepspeed.json")]
        words += [*(TINIER if self.rehearse else []), f"data.train={self.work / 'shards'}", f"run.dir={folder / 'run'}"]
        words += ["eval.every=0", "log.every=1", "log.tensorboard=false", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "2"} | (CPU if self.rehearse else {}) | surroundings
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen([*launcher, *words], cwd=ROOT, env=environment, stdout=log, stderr=log)

    def folder(self, name: str) -> Path:
        return self.work / "runs" / name.replace(", ", "-").replace(" ", "_") / "run"

    def run(self, name: str, content: dict[str, Any], surroundings: dict[str, str], *overrides: str) -> Line:
        """Run it to its end; returns what it logged."""
        began = time.monotonic()
        process = self.start(name, content, surroundings, *overrides)
        try:
            status = process.wait(timeout=max(1.0, seconds_left() - 5))
        except subprocess.TimeoutExpired:
            _kill(process)
            status = "out of time"
        return self._ended(name, status, time.monotonic() - began)

    def killed(self, name: str, content: dict[str, Any], *overrides: str) -> Line:
        """Kill a run with all its processes after `killed_at` steps, and then resume it to its end."""
        process = self.start(name, content, {}, *overrides)
        while process.poll() is None and len(self.losses(name)) < self.steps.killed_at and seconds_left() > 10:
            time.sleep(0.02)
        if process.poll() is not None:
            return self._ended(name, f"{process.returncode}, before it could be killed", 0.0)
        _kill(process)
        at = len(self.losses(name))
        return self.run(name, content, {}, *overrides) | {"killed_at": at}

    def _ended(self, name: str, status: int | str, seconds: float) -> Line:
        line: Line = {"run": name, "seconds": round(seconds, 1), "losses": self.losses(name)}
        if status != 0:
            log = (self.folder(name).parent / "log.txt").read_text(errors="replace")
            print(log[-5000:], flush=True)
            said = [text for text in log.splitlines() if text.strip() and not text.startswith("[")]  # not the launcher
            line["failure"] = f"exit status {status}: {said[-1][:300] if said else 'nothing was said'}"
        return line

    def losses(self, name: str) -> list[list[float]]:
        """The values of `NAMES` for each step, from the last time that it was made."""
        path = self.folder(name) / "metrics.jsonl"
        found: dict[int, list[float]] = {}
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:  # being written
                continue
            if "loss" in line:
                found[line["step"]] = [line[key] for key in NAMES]
        return [found[step] for step in sorted(found)]

    def saved(self, name: str) -> dict[str, str]:
        """The hash of each file of weights and moments in the latest checkpoint."""
        checkpoints = self.folder(name) / "checkpoints"
        newest = checkpoints / (checkpoints / "latest").read_text().strip()
        return {e.file: e.sha256 for e in read_index(newest) if e.file.startswith(("weights", "moments"))}


def compare(found: Line, reference: Line) -> Line:
    """Compare a run's first losses with the reference's."""
    precision = found["run"][:4]
    pairs = list(zip(found["losses"][:EARLY], reference["losses"][:EARLY], strict=False))
    if len(pairs) < EARLY:
        return {"check": f"{found['run']} learns as {REFERENCE}", "holds": False, "why": "too few steps"}
    differences = [[abs(a - b) / abs(b) for a, b in zip(mine, other, strict=True)] for mine, other in pairs]
    worst_loss = max(value for step in differences for value in step[:-1])
    worst_norm = max(step[-1] for step in differences)
    of_loss, of_norm = BOUNDS[precision]
    return {
        "check": f"{found['run']} learns as {REFERENCE}",
        "holds": worst_loss <= of_loss and worst_norm <= of_norm,
        "worst_loss": worst_loss,
        "worst_norm": worst_norm,
        "bounds": [of_loss, of_norm],
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the launcher and all processes that it has started, by SIGKILL."""
    everybody = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everybody:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(everybody, timeout=10)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--work", type=Path, required=True)
    words.add_argument("--rehearse", action="store_true", help="everything on the CPU, with a tinier model")
    arguments = words.parse_args()
    record, trainer = Record(arguments.file), Trainer(arguments.work, arguments.rehearse)
    trainer.make_corpus()
    steps = trainer.steps
    cases = dict(list(KILLED.items())[-1:]) if arguments.rehearse else KILLED
    exact = ["train.deterministic=true", f"train.steps={steps.killed}", f"checkpoint.every={steps.saved_every}"]
    with ThreadPoolExecutor(max(1, min(10, (os.cpu_count() or 1) // 2))) as pool:
        compared = {
            name: pool.submit(trainer.run, name, *COMPARED[name], f"train.steps={steps.compared}", "checkpoint.every=0")
            for name in COMPARED
        }
        alone = {name: pool.submit(trainer.run, f"alone, {name}", KILLED[name], {}, *exact) for name in cases}
        killed = {name: pool.submit(trainer.killed, f"killed, {name}", KILLED[name], *exact) for name in cases}
        lines = {name: future.result() for name, future in compared.items()}
        for name, line in lines.items():
            record.add(**line)
            if name != REFERENCE:
                record.attempt({}, partial(compare, line, lines[REFERENCE]))
        for name in cases:
            whole, again = alone[name].result(), killed[name].result()
            record.add(**whole)
            record.add(**again)
            check = {"check": f"{name}, killed and resumed, is the same in every bit"}
            record.attempt(check, partial(resumed, trainer, whole, again))
    return record.exit_code


def resumed(trainer: Trainer, whole: Line, again: Line) -> Line:
    """Whether a run that was killed and resumed ended like the undisturbed one."""
    differing = [n + 1 for n, (a, b) in enumerate(zip(whole["losses"], again["losses"], strict=False)) if a != b]
    same_files = trainer.saved(whole["run"]) == trainer.saved(again["run"])
    complete = len(whole["losses"]) == len(again["losses"]) == trainer.steps.killed
    return {
        "holds": complete and same_files and not differing,
        "steps": [len(whole["losses"]), len(again["losses"])],
        "differing_steps": differing[:10],
        "same_checkpoint": same_files,
        "killed_at": again.get("killed_at"),
    }


if __name__ == "__main__":
    sys.exit(main())
