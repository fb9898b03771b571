"""Micro-batches are copied to the device in order, whole and a step ahead, from any position on."""

from __future__ import annotations

import pytest
import torch
from test_loader import GLOBAL, pairs

from mvlm.batch import apply
from mvlm.data.loading.device import Copy, DeviceCopies
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.sampler import make_sampler, order_of

OPTIONS = {"global_batch": GLOBAL, "micro_batch": GLOBAL // 2}


@pytest.fixture(scope="module")
def draws(dataset, config):
    return make_sampler(dataset.mixture, config.run.seed, [order_of(config.data)])


class RecordedCopies(DeviceCopies):
    """Records the positions whose copies have begun."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.begun: list[int] = []

    def begin(self, batch) -> Copy:
        self.begun += batch.position_B.tolist()
        return super().begin(batch)


def read(loader: Loader, steps: int) -> list[dict[int, str]]:
    """The digest of each position, by step."""
    return [{at: it for batch in next(loader) for at, it in pairs(batch).items()} for _ in range(steps)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copied_stream_is_the_same_and_resumes_where_it_was_left(dataset, draws, workers):
    with Loader(dataset, draws, **OPTIONS, workers=workers) as loader:
        plain = read(loader, 4)
    with Loader(dataset, draws, **OPTIONS, workers=workers, copies=RecordedCopies(torch.device("cpu"))) as loader:
        assert read(loader, 2) == plain[:2]
        loader.ready()  # begins the third step's copies, which are lost with this loader
        left = loader.position + GLOBAL
    options = OPTIONS | {"start_position": left, "workers": workers}
    with Loader(dataset, draws, **options, copies=DeviceCopies(torch.device("cpu"))) as loader:
        assert read(loader, 2) == plain[2:]


def test_copies_of_the_next_step_begin_when_it_is_asked_for(dataset, draws):
    copies = RecordedCopies(torch.device("meta"))
    with Loader(dataset, draws, **OPTIONS, workers=2, copies=copies) as loader:
        for step in range(1, 4):
            micro_batches = next(loader)
            assert all(batch.image_BCHW.is_meta and batch.packing.token_T.is_meta for batch in micro_batches)
            assert copies.begun == list(range(step * GLOBAL))
            assert loader.ready()
            assert copies.begun == list(range((step + 1) * GLOBAL))
            assert loader.ready(0.0)
            assert copies.begun == list(range((step + 1) * GLOBAL))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_a_gpu_every_batch_is_whole_while_others_are_copied(dataset, draws):
    with Loader(dataset, draws, **OPTIONS, workers=2) as loader:
        plain = read(loader, 8)
    device, busy = torch.device("cuda"), torch.randn(4096, 4096, device="cuda")
    copies, found = DeviceCopies(device), []
    assert copies._stream != torch.cuda.current_stream(device)
    with Loader(dataset, draws, **OPTIONS, workers=2, pin=True, copies=copies) as loader:
        for _ in plain:
            micro_batches = next(loader)
            loader.ready()
            for _ in range(20):  # keeps the reading stream behind the one that copies the next batch
                busy = busy @ busy / 64
            found.append([apply(batch, torch.clone) for batch in micro_batches])
            del micro_batches
    back = [[batch.to(torch.device("cpu")) for batch in step] for step in found]
    torch.cuda.synchronize()
    assert [{at: it for batch in step for at, it in pairs(batch).items()} for step in back] == plain
