"""Which steps are called bad, and which batches are then left out."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.state import GLOBAL, OrderSpec
from mvlm.data.loading.order import MixtureSampler
from mvlm.data.loading.sampler import make_sampler
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.training.health.anomaly import ENOUGH, HISTORY, LAG, Anomaly, AnomalyDetector
from mvlm.training.health.quarantine import Skipped
from tests.data.made_shards import make_rows, write_shards


def judged(detector: AnomalyDetector, losses: list[float], norms: list[float] | None = None) -> list[Anomaly]:
    """What is found in these successive steps of 16 samples each."""
    found = []
    norms = norms or [1.0] * len(losses)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        detector.watch(step, 16 * (step - 1), torch.tensor(loss), torch.tensor(norm), overflowed=False)
        if detector.due():
            found.append(detector.judge(*detector.report()))
    while detector.due(drain=True):
        found.append(detector.judge(*detector.report()))
    return [bad for bad in found if bad]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_found_from_the_first_step(value: float) -> None:
    (bad,) = judged(AnomalyDetector(0.0, ()), [value])
    assert (bad.step, bad.position) == (1, 0)
    assert str(value) in bad.reason
    (bad,) = judged(AnomalyDetector(0.0, ()), [2.0, 2.0, 2.0], [1.0, value, 1.0])
    assert (bad.step, bad.position) == (2, 16)
    assert "gradient" in bad.reason


def test_a_spike_is_a_multiple_of_the_median() -> None:
    usual = [2.0, 4.0] * ENOUGH
    assert judged(AnomalyDetector(3.0, ()), [*usual, 9.1])[0].step == len(usual) + 1  # the median is 3
    assert not judged(AnomalyDetector(3.0, ()), [*usual, 8.9])
    assert not judged(AnomalyDetector(0.0, ()), [*usual, 1e9])


def test_a_small_loss_may_jump_by_multiples() -> None:
    usual = [0.1] * ENOUGH
    assert not judged(AnomalyDetector(3.0, ()), [*usual, 0.9])
    assert judged(AnomalyDetector(3.0, ()), [*usual, 1.1])


def test_too_few_losses_reveal_no_spike() -> None:
    assert not judged(AnomalyDetector(3.0, ()), [1.0] * (ENOUGH - 1) + [100.0])
    assert judged(AnomalyDetector(3.0, ()), [1.0] * ENOUGH + [100.0])


def test_a_spike_does_not_raise_the_median() -> None:
    detector = AnomalyDetector(3.0, ())
    assert len(judged(detector, [1.0] * ENOUGH + [100.0] * 50)) == 50
    assert detector.recent_losses == (1.0,) * ENOUGH


def test_the_history_passes_from_one_process_to_the_next() -> None:
    detector = AnomalyDetector(3.0, ())
    judged(detector, [float(step) for step in range(1, 100)])
    assert detector.recent_losses == tuple(float(step) for step in range(100 - HISTORY, 100))
    assert judged(AnomalyDetector(3.0, detector.recent_losses), [250.0])
    assert not judged(AnomalyDetector(3.0, detector.recent_losses), [190.0])


def test_a_reading_waits_for_two_steps_unless_all_must_be_judged() -> None:
    detector = AnomalyDetector(3.0, ())
    detector.watch(1, 0, torch.tensor(1.0), None, overflowed=False)
    assert LAG == 2 and not detector.due() and detector.due(drain=True)
    detector.watch(2, 16, torch.tensor(1.0), None, overflowed=False)
    assert detector.due()


def test_an_overflow_of_fp16_is_no_bad_step() -> None:
    detector = AnomalyDetector(3.0, ())
    detector.watch(1, 0, torch.tensor(1.0), torch.tensor(math.inf), overflowed=True)
    assert detector.judge(*detector.report()) is None


def test_left_out_batches_are_listed_with_their_samples(scenes: Path, tmp_path: Path) -> None:
    mixture = Mixture([scenes / "train"])
    draws = MixtureSampler([len(mixture)], [1.0], 0, 64, 64)
    skipped = Skipped(tmp_path, (48,), 10, 0, 16)
    skipped.add(Anomaly(3, 32, "the loss is nan"), 16, draws, mixture)
    line = json.loads((tmp_path / SKIPPED).read_text())
    assert (line["step"], line["position"], line["reason"]) == (3, 32, "the loss is nan")
    rows = draws(torch.arange(32, 48).numpy())[0].tolist()
    assert [sample["key"] for sample in line["samples"]] == [mixture.row(row).key for row in rows]
    assert line["samples"][0]["where"] == mixture.where(rows[0])
    with open(tmp_path / SKIPPED, "a") as file:
        file.write('{"position": 6')  # cut off by a kill
    again = Skipped(tmp_path, (), 10, 0, 16)
    assert again.positions == {32}
    assert skipped.positions == {32, 48}
    assert skipped.positions_before(48) == (32,)
    again.add(Anomaly(5, 64, "the loss is nan"), 16, draws, mixture)
    assert Skipped(tmp_path, (), 10, 0, 16).positions == {32, 64}, "the next line is not lost with it"


def test_samples_stay_left_out_in_batches_of_another_size(scenes: Path, tmp_path: Path) -> None:
    mixture = Mixture([scenes / "train"])
    skipped = Skipped(tmp_path, (), 10, 0, 16)
    skipped.add(Anomaly(4, 48, "the loss is nan"), 16, MixtureSampler([len(mixture)], [1.0], 0), mixture)
    assert [sorted(Skipped(tmp_path, (), 10, 32, batch).positions) for batch in (16, 32, 8, 10)] == [
        [48],
        [32],
        [48, 56],
        [42, 52, 62],
    ]
    assert Skipped(tmp_path, (32,), 10, 64, 32).positions == {32}, "the checkpoint knows those before it"


def test_left_out_pairs_of_images_with_several_captions_are_listed_by_their_rows(tmp_path: Path) -> None:
    rows = make_rows(6)
    mixture = Mixture([write_shards(tmp_path / "shards", rows)], pairs=True)
    draws = make_sampler(mixture, 0, [OrderSpec(GLOBAL)])
    Skipped(tmp_path, (), 10, 0, 16).add(Anomaly(1, 0, "the loss is nan"), mixture.per_epoch, draws, mixture)
    listed = [sample["key"] for sample in json.loads((tmp_path / SKIPPED).read_text())["samples"]]
    assert Counter(listed) == {row["key"]: len(row["captions"]) for row in rows}


def test_a_list_that_cannot_be_written_is_an_error(scenes: Path, tmp_path: Path) -> None:
    mixture = Mixture([scenes / "train"])
    skipped = Skipped(tmp_path, (), 10, 0, 16)
    (tmp_path / SKIPPED).mkdir()
    with pytest.raises(UserError, match=SKIPPED):
        skipped.add(Anomaly(3, 32, "the loss is nan"), 16, MixtureSampler([len(mixture)], [1.0], 0, 64, 64), mixture)
