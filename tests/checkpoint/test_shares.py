"""Parts of a checkpoint's tensors, of which each rank reads its own."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvlm.checkpoint.cut import TensorPart
from mvlm.checkpoint.layout import MOMENTS, WEIGHTS, find_checkpoint
from mvlm.checkpoint.tensors import open_tensors, write_tensors
from mvlm.errors import UserError
from mvlm.export.folder import PREFIX, write_weights
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


def test_any_part_equals_that_part_of_the_whole_tensor(checkpoint: Path) -> None:
    for folder, kind in ((checkpoint, WEIGHTS), (find_checkpoint(KEPT / "zero2"), MOMENTS)):
        with open_tensors(folder, kind) as files:
            for title, file in files.items():
                whole = file.tensor().flatten()
                for start, stop in ((0, len(whole)), (len(whole) // 3, len(whole) - len(whole) // 3), (1, 1)):
                    assert torch.equal(file.part(start, stop), whole[start:stop]), title


def test_elements_that_a_rank_reads_get_the_shape_of_the_tensor(checkpoint: Path) -> None:
    with open_tensors(checkpoint, WEIGHTS) as files:
        whole = gathered(["weight"], lambda key, start, stop: files["a"].part(start, stop), (5, 7))
        assert torch.equal(whole["weight"], files["a"].tensor())


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "holds NaN in 1"), (None, "cannot be read")])
def test_a_problem_is_kept_until_the_ranks_can_agree_on_it(checkpoint: Path, value: float | None, said: str) -> None:
    with open_tensors(checkpoint, WEIGHTS) as files:
        path = files["c"].path
        if value is None:  # truncated after it was opened
            path.write_bytes(path.read_bytes()[:-4])
        else:
            changed = torch.tensor([value]).numpy().tobytes()
            path.write_bytes(path.read_bytes()[:-4] + changed)
        shares = Shares(files, {}, {})
        assert torch.equal(shares.read("a", "weight", 3, 9), files["a"].part(3, 9)) and not shares.problem
        shares.read("c", "weight", 0, 2)
        assert not shares.problem  # the damaged end was not read
        assert len(shares.read("c", "weight", 2, 4)) == 2
        shares.read("b", "weight", 0, 1)
    assert said in shares.problem and str(path) in shares.problem


@pytest.fixture
def in_pieces(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """As three ranks save under ZeRO: tensors laid end to end and cut anywhere."""
    draw = torch.Generator().manual_seed(1)
    whole = {name: torch.rand(shape, generator=draw) for name, shape in (("a", (5, 7)), ("b", ()), ("c", (4, 1, 3)))}
    entries, begin = [], 0
    files: list[dict[str, TensorPart]] = [{}, {}, {}]
    for name, tensor in whole.items():
        for number, (low, high) in enumerate(((0, 20), (20, 38), (38, 48))):
            start, stop = (min(max(edge - begin, 0), tensor.numel()) for edge in (low, high))
            if start < stop:
                files[number][name] = TensorPart(tensor.flatten()[start:stop], start, tuple(tensor.shape))
        begin += tensor.numel()
    for number in (2, 0, 1):
        entries.append(write_tensors(tmp_path / f"weights-{number:05d}-of-00003.safetensors", files[number]))
    (tmp_path / "index.json").write_text(json.dumps({"format": 3, "files": [asdict(entry) for entry in entries]}))
    return tmp_path, whole


def test_a_tensor_in_pieces_is_read_like_a_whole_one(in_pieces: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, whole = in_pieces
    with open_tensors(folder, WEIGHTS) as files:
        assert files.keys() == whole.keys() and sorted(len(files[name].pieces) for name in files) == [1, 2, 2]
        for name, tensor in whole.items():
            assert files[name].shape == tuple(tensor.shape) and torch.equal(files[name].weight(), tensor)
            for start in range(tensor.numel() + 1):
                for stop in range(start, tensor.numel() + 1):
                    assert torch.equal(files[name].part(start, stop), tensor.flatten()[start:stop])
    stored = load_file(folder / "weights-00001-of-00003.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {"a": (15,), "b": (), "c": (2,)}


def test_pieces_are_merged_into_a_plain_file(in_pieces: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, whole = in_pieces
    write_weights(folder, tmp_path, shard_bytes=1 << 20)
    merged = load_file(tmp_path / "model.safetensors")
    assert merged.keys() == {PREFIX + name for name in whole}
    assert all(torch.equal(merged[PREFIX + name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_checkpoint_without_some_pieces_is_refused(in_pieces: tuple[Path, object], number: int) -> None:
    folder, _ = in_pieces
    index = json.loads((folder / "index.json").read_text())
    index["files"] = [entry for entry in index["files"] if f"-{number:05d}-of" not in entry["file"]]
    (folder / "index.json").write_text(json.dumps(index))
    with (
        pytest.raises(UserError, match=r"lacks part of [ac]: the checkpoint is damaged"),
        open_tensors(folder, WEIGHTS),
    ):
        pass


def test_a_truncated_checkpoint_is_not_opened(checkpoint: Path) -> None:
    path = checkpoint / "weights-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="the checkpoint is damaged"), open_tensors(checkpoint, WEIGHTS):
        pass
