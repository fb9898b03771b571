"""Makes the shards and trains the kept runs: python tests/training/kept_runs/make.py FOLDER, from the root."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mvlm.data.shards.schema import SCHEMA
from tests.conftest import mvlm_command
from tests.data.made_shards import write_shards

HERE = Path(__file__).parent
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
RANKS = {0: 1, 1: 1, 2: 2, 3: 2}
"""By ZeRO stage."""


def rows(count: int) -> list[dict[str, object]]:
    """A bar in front of a ground, each of one colour, with two captions."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        ground, bar = rng.permutation(list(COLOURS))[:2]
        pixels = np.full((20, 20, 3), COLOURS[ground], dtype=np.uint8)
        across, at = bool(rng.integers(2)), int(rng.integers(2, 14))
        pixels[(slice(at, at + 4), slice(None))[:: 1 if across else -1]] = COLOURS[bar]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        kind = "lying" if across else "standing"
        captions = [f"a {kind} {bar} bar on {ground}", f"{ground} behind a {bar} bar"]
        row = {"key": f"k{number}", "image": file.getvalue(), "captions": captions, "source": ""}
        made.append(row | {"width": 20, "height": 20})
    return made


def main(out: Path) -> None:
    out.mkdir(parents=True)
    os.chdir(out)  # what the runs write down of paths is relative to it
    given = rows(48)
    if "crc32" in SCHEMA.names:
        import zlib

        given = [row | {"crc32": zlib.crc32(row["image"])} for row in given]
    write_shards(Path("shards"), given)
    shutil.copy(HERE / "run.toml", "run.toml")
    for stage, ranks in RANKS.items():
        Path("ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        words = ["train", "run.toml", "--deepspeed_config", "ds.json", f"run.dir=zero{stage}", "data.train=shards"]
        extra = ["train.ema=0.9"] if stage == 2 else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        subprocess.run(mvlm_command(*words, *extra, ranks=ranks), env=environment, check=True)
        keep(Path(f"zero{stage}"))
    Path("ds.json").unlink()
    Path("run.toml").unlink()


def keep(run: Path) -> None:
    """What a run that was stopped after the third step has; without names of this machine."""
    (run / "checkpoints/latest").write_text("step_00000003")
    shutil.rmtree(run / "checkpoints/step_00000006")
    facts = json.loads((run / "run.json").read_text())
    facts |= {"hosts": ["host"] * len(facts["hosts"]), "command": "mvlm train run.toml"}
    (run / "run.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(run / "attempts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
