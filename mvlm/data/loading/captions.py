"""The loader for other people's training loops: images and captions, in our order and with our exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

from torch import Tensor

from mvlm.config.load import config_from_dict
from mvlm.config.places import as_paths
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.prefetch import start_prefetcher
from mvlm.data.loading.sampler import make_sampler, order_of
from mvlm.data.samples.pairs import Captioned, PlainDataset
from mvlm.data.shards.mixture import training_mixture
from mvlm.errors import UserError
from mvlm.runtime.arguments import whole

Collate = Callable[[Tensor, list[str]], Any]
"""Turns images uint8 [B, 3, H, W] and as many captions into what a training loop expects."""


class CaptionLoader:
    """Batches of augmented images and captions, decoded ahead by threads; iterating gives those of one epoch.

    The global batches of a run depend only on the data, the seed and the settings, not on the ranks, and
    `state_dict` is all that is needed to resume, on any number of ranks.

    Args:
        data: shards, URLs of shards, tars, Arrow or parquet files, or several of these, as in `data.train`.
        batch: pairs in each of this rank's batches.
        image_size: side in pixels.
        collate: turns each batch into what the loop expects, in a thread of the loader; None = (images, captions).
        seed: for order, augmentation and captions.
        rank, world: of this process.
        settings: other keys of the run TOML's table `data`, such as `crop_scale=(0.9, 1.0)` or `workers=8`.

    Attributes:
        num_batches: batches in an epoch, on each rank; what is left over begins the next epoch.
        num_samples: samples in these, on all ranks.

    Raises:
        UserError: the data cannot be read, or a setting is wrong.
    """

    def __init__(
        self,
        data: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        batch: int,
        image_size: int = 224,
        collate: Collate | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        **settings: Any,
    ) -> None:
        batch, image_size, world = whole("batch", batch), whole("image_size", image_size), whole("world", world)
        rank = whole("rank", rank, least=0)
        if rank >= world:
            raise UserError(f"CaptionLoader has rank {rank} of {world}: give ranks from 0 up to world - 1.")
        table = {"train": as_paths(data)} | {name: _plain(value) for name, value in settings.items()}
        config = config_from_dict({"run": {"seed": _plain(seed)}, "data": table}, "CaptionLoader")
        self._data, seed = config.data, config.run.seed
        self._mixture = training_mixture(self._data)
        order = order_of(self._data)
        self._order = f"{order} of {self._data.epoch}"
        self._sampler = make_sampler(self._mixture, seed, [order])
        self._dataset = PlainDataset(self._mixture, self._data, image_size, seed)
        self._global, self._batch, self._rank, self._world = batch * world, batch, rank, world
        self._seed, self._collate = seed, collate
        self._seen = 0
        self._loader: Loader | None = None
        self.num_batches = max(1, self._mixture.per_epoch // self._global)
        self.num_samples = self.num_batches * self._global

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        """The batches left in the epoch."""
        if self._loader is None:
            self._loader = self._open()
        for _ in range(self.num_batches - self._seen // self._global % self.num_batches):
            (batch,) = next(self._loader)
            self._seen += self._global
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, on all ranks, after the batches that were handed out."""
        known = {"seed": self._seed, "fingerprint": self._mixture.fingerprint, "order": self._order}
        return {"samples_seen": self._seen} | known

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a position.

        Raises:
            UserError: the state belongs to other data, another seed, another order or another global batch.
        """
        here = self.state_dict()
        differences = {"fingerprint": "other data", "seed": "another seed", "order": "another shuffle or epoch"}
        for name, what in differences.items():
            if state.get(name) != here[name]:
                raise UserError(
                    f"The loader's state is for {what}: give the loader the arguments that it was saved with."
                )
        if state["samples_seen"] % self._global:
            raise UserError(
                f"The loader has seen {state['samples_seen']} samples, not a multiple of {self._global}: choose batch "
                "x world so that it divides them."
            )
        self.close()
        self._seen = state["samples_seen"]

    def close(self) -> None:
        """End the threads; iterating starts them again."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> CaptionLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Loader:
        return Loader(
            self._dataset,
            self._sampler,
            global_batch=self._global,
            micro_batch=self._batch,
            rank=self._rank,
            world=self._world,
            start_position=self._seen,
            workers=self._data.workers,
            worker_mode=self._data.worker_mode,
            prefetch=self._data.prefetch,
            prefetcher=start_prefetcher(self._mixture, self._sampler, self._seen),
            collate=self._collated,
        )

    def _collated(self, samples: Sequence[Captioned], images_VBCHW: Tensor) -> Any:
        captions = [sample.caption for sample in samples]
        return self._collate(images_VBCHW[0], captions) if self._collate else (images_VBCHW[0], captions)


def _plain(value: Any) -> Any:
    """The value as TOML would have it: a tuple becomes a list, and numpy's and torch's numbers become Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
