"""Bad images are listed once and counted over all attempts, and too many of them end the run with one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mvlm.checkpoint.description import QUARANTINE
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.data.samples.dataset import Fault
from mvlm.errors import UserError
from mvlm.training.health.quarantine import Quarantine
from tests.conftest import ROOT, TINY
from tests.ranks import mvlm, run_ranks
from tests.training.conftest import TOML, read_metrics

JSON = str(ROOT / "ds_configs/cpu.json")


def fault(row: int, position: int = 0) -> Fault:
    return Fault(row, f"shards/000000.arrow row {row}", f"k{row}", "the image cannot be decoded (cut)", position)


def listed(run: Path) -> list[int]:
    return [json.loads(line)["row"] for line in (run / QUARANTINE).read_text().splitlines()]


def test_a_row_is_listed_once_however_many_attempts_meet_it(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 100, 1000)
    quarantine.add([], 16)
    assert not (tmp_path / QUARANTINE).exists()
    quarantine.add([fault(5, 8), fault(3, 2), fault(5, 40)], 64)
    quarantine.add([fault(3, 90)], 128)
    assert listed(tmp_path) == [3, 5]  # in the order of their positions
    with open(tmp_path / QUARANTINE, "a") as file:
        file.write('{"row": 7')  # cut off by a kill
    again = Quarantine(tmp_path, 100, 1000)
    assert len(again) == 2
    line = json.loads((tmp_path / QUARANTINE).read_text().splitlines()[0])
    assert (line["key"], line["where"], line["position"]) == ("k3", "shards/000000.arrow row 3", 2)
    assert line["reason"] == fault(3).reason


def test_a_row_of_another_stages_data_is_listed_even_if_a_row_of_its_number_is(tmp_path: Path) -> None:
    Quarantine(tmp_path, 100, 1000).add([fault(3), fault(5)], 64)
    next_stage = Quarantine(tmp_path, 100, 1000)
    next_stage.add([fault(3), Fault(5, "other/000000.arrow row 5", "of another", "its checksum differs", 80)], 96)
    assert listed(tmp_path) == [3, 5, 5] and len(next_stage) == len(Quarantine(tmp_path, 100, 1000)) == 3


@pytest.mark.parametrize(
    ("tolerance", "seen", "rows", "allowed"),
    [
        (0, 10**6, 10**9, 0),
        (3, 10**6, 10**9, 3),
        (0.001, 100, 10**9, 10),
        (0.001, 20_000, 10**9, 20),
        (0.001, 10**6, 15_000, 15),
    ],
)
def test_the_tolerance_is_a_share_or_a_number(
    tmp_path: Path, tolerance: float, seen: int, rows: int, allowed: int
) -> None:
    quarantine = Quarantine(tmp_path, tolerance, rows)
    quarantine.add([fault(row) for row in range(allowed)], seen)
    assert not quarantine.excess
    quarantine.add([fault(allowed)], seen)
    words = rf"{allowed + 1} images? .*data\.tolerance.*row {allowed} \(key.*{QUARANTINE}"
    assert re.match(words, str(quarantine.excess)) and len(listed(tmp_path)) == allowed + 1
    again = Quarantine(tmp_path, tolerance, rows)
    again.add([fault(0)], seen)
    assert not again.excess  # rows that are listed do not stop a later attempt


def test_a_list_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run" / QUARANTINE).mkdir(parents=True)
    quarantine = Quarantine(tmp_path / "other", 100, 1000)
    quarantine._path = tmp_path / "run" / QUARANTINE
    with pytest.raises(UserError, match=QUARANTINE):
        quarantine.add([fault(1)], 16)


def write_damaged(scenes: Path, out: Path) -> None:
    """Write shards whose first eight images cannot be decoded."""
    shutil.copytree(scenes / "train", out)
    shard = out / "000000.arrow"
    shard.write_bytes(b"\0PNG".join(shard.read_bytes().split(b"\x89PNG", 8)))


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 16), (2, 4)])
def test_a_run_continues_without_a_few_images_and_saves_its_steps_before_too_many_end_it(
    scenes: Path, tmp_path: Path, ranks: int, micro_batch: int
) -> None:
    """One rank does not accumulate gradients; two do."""
    write_damaged(scenes, tmp_path / "shards")
    given = [TOML, "--deepspeed_config", JSON, *TINY, f"data.train={tmp_path}/shards", "checkpoint.every=0"]
    given.append(f"train.micro_batch={micro_batch}")

    def train(run: Path, tolerance: int, steps: int) -> str:
        words = [*given, f"run.dir={run}", f"data.tolerance={tolerance}", f"train.steps={steps}"]
        ended = run_ranks(mvlm, "train", *words, ranks=ranks)
        assert ended.returncode == (tolerance == 4) and "Traceback" not in ended.stderr, ended.stderr
        return ended.stderr

    run = tmp_path / "run"
    said = train(run, 4, 16)
    assert re.search(r"mvlm: [5-8] images cannot be used, .*data\.tolerance = 4.*000000\.arrow row \d", said), said
    rows, lines = listed(run), read_metrics(run)
    assert 5 <= len(set(rows)) == len(rows) and set(rows) <= set(range(8))
    counts = [line["bad_images"] for line in lines if "loss" in line]
    assert counts == sorted(counts) and 0 < counts[-1] <= 4
    step = lines[-1]["step"]
    assert find_checkpoint(run).name == f"step_{step:08d}" and f"at step {step}, saved in" in said
    if ranks == 1:  # too many are found only after the last step
        last = tmp_path / "last"
        train(last, 4, step)
        assert find_checkpoint(last).name == f"step_{step:08d}"
    train(run, 8, 16)
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, 17))
