"""Parts of a checkpoint's tensors, which ranks read by themselves."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mvlm.checkpoint.layout import MOMENTS, WEIGHTS, find_checkpoint
from mvlm.checkpoint.tensors import open_tensors, write_tensors
from mvlm.errors import UserError
from mvlm.training.checkpoint.resume import Shares
from mvlm.training.zero.shares import gathered
from tests.training.conftest import KEPT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=draw) for name, shape in (("a", (5, 7)), ("b", ()), ("c", (4,)))}
    entry = write_tensors(tmp_path / "weights-00000-of-00001.safetensors", tensors)
    (tmp_path / "index.json").write_text(json.dumps({"files": [asdict(entry)]}))
    return tmp_path


def test_any_part_is_what_the_whole_tensor_has_there(checkpoint: Path) -> None:
    for folder, kind in ((checkpoint, WEIGHTS), (find_checkpoint(KEPT / "zero2"), MOMENTS)):
        with open_tensors(folder, kind) as files:
            for title, file in files.items():
                whole = file.tensor(title).flatten()
                for start, stop in ((0, len(whole)), (len(whole) // 3, len(whole) - len(whole) // 3), (1, 1)):
                    assert torch.equal(file.piece(title, start, stop), whole[start:stop]), title


def test_what_a_rank_reads_is_put_together_in_the_tensors_shape(checkpoint: Path) -> None:
    with open_tensors(checkpoint, WEIGHTS) as files:
        whole = gathered(["weight"], lambda key, start, stop: files["a"].piece("a", start, stop), (5, 7))
        assert torch.equal(whole["weight"], files["a"].tensor("a"))


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "holds NaN in 1"), (None, "cannot be read")])
def test_what_is_wrong_is_kept_until_ranks_can_agree_on_it(checkpoint: Path, value: float | None, told: str) -> None:
    with open_tensors(checkpoint, WEIGHTS) as files:
        path = files["c"].path
        if value is None:  # cut short since it was opened
            path.write_bytes(path.read_bytes()[:-4])
        else:
            changed = torch.tensor([value]).numpy().tobytes()
            path.write_bytes(path.read_bytes()[:-4] + changed)
        shares = Shares(files, {}, {})
        assert torch.equal(shares.read("a", "weight", 3, 9), files["a"].piece("a", 3, 9)) and not shares.problem
        shares.read("c", "weight", 0, 2)
        assert not shares.problem  # the end is not asked for
        assert len(shares.read("c", "weight", 2, 4)) == 2
        shares.read("b", "weight", 0, 1)
    assert told in shares.problem and str(path) in shares.problem


def test_a_checkpoint_that_was_cut_short_is_not_opened(checkpoint: Path) -> None:
    path = checkpoint / "weights-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="the checkpoint is damaged"), open_tensors(checkpoint, WEIGHTS):
        pass
