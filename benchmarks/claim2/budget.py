"""How long the campaign will take on one GPU: the number of its updates, and `mvlm plan`'s estimate of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.claim import cell as claim
from benchmarks.claim.grid import SCENES
from benchmarks.claim2.plan import ARMS, CONTRAST_ALONE, Size, begun_from, grid, rate_cells
from mvlm.config.load import load_config
from mvlm.estimate.cards import find_card
from mvlm.estimate.count import FakeModel
from mvlm.estimate.encoders import build_without_weights
from mvlm.estimate.plan import Planner, Request
from mvlm.training.zero.json_file import read_deepspeed_json

CARD, MFU = "h100", 0.45  # mvlm plan's own share of the peak
PAIRS = 194_884
"""Icons to train on; the time of an update does not depend on it."""
SITTING_S = 25 * 60
AROUND_S = 15.0
"""An assumption: what starting and measuring a cell takes."""


@dataclass(frozen=True)
class Budget:
    """For the whole campaign, counting every arm's cells as the joint arm's, since all arms get its time.

    Attributes:
        cells: training runs.
        updates: of all cells together.
        products_s: what their matrix products take the card, at MFU.
        processes: that share the card.
    """

    cells: int
    updates: int
    products_s: float
    processes: int

    @property
    def left_s(self) -> float:
        """What is left of a sitting for updates, after each process has started and measured its share of the cells."""
        return SITTING_S - AROUND_S * self.cells / self.processes

    @property
    def update_s(self) -> float:
        """What an update may take the card if all are to end within a sitting."""
        return self.left_s / self.updates

    @property
    def mfu(self) -> float:
        """The share of the peak that the products must reach for that."""
        return MFU * self.products_s / self.left_s


def budget(size: Size, root: Path = claim.ROOT) -> Budget:
    """Counted without data and without a GPU."""
    icons, scenes = root / size.toml, Path(claim.SIZES[size.scenes].toml(SCENES))
    whole = load_config(icons, size.settings).train.steps
    before = (*size.settings, *size.contrast, *CONTRAST_ALONE)
    begun = len(begun_from((*rate_cells(), *grid(size))))
    of_contrast = begun * load_config(icons, before).train.steps
    pretrained = load_config(scenes, size.scene_settings).train.steps
    tuned = max(2, pretrained // claim.TUNED_FOR)
    of_scenes = len(ARMS) * size.seeds
    of_icons = len(rate_cells()) * max(1, whole // 2) + len(grid(size)) * whole
    seconds = of_icons * _update_seconds(icons, size.settings, size)
    seconds += of_contrast * _update_seconds(icons, before, size)
    seconds += of_scenes * (pretrained + tuned) * _update_seconds(scenes, size.scene_settings, size)
    cells = len(rate_cells()) + len(grid(size)) + begun + 2 * of_scenes
    updates = of_icons + of_contrast + of_scenes * (pretrained + tuned)
    return Budget(cells, updates, seconds, size.processes)


def describe(size: Size) -> str:
    found = budget(size)
    return (
        f"{found.cells} cells, {found.updates:,} updates. Their products take one {CARD} {found.products_s:,.0f} s at "
        f"{MFU:.0%} of its peak.\n{found.processes} processes in {SITTING_S // 60} minutes, of which each cell's start "
        f"and measurement take {AROUND_S:.0f} s of one: {found.left_s:,.0f} s are left.\nAn update may take the card "
        f"{1000 * found.update_s:.1f} ms, {found.mfu:.1%} of its peak, and its process "
        f"{1000 * found.update_s * found.processes:.0f} ms."
    )


def _update_seconds(toml: Path, settings: tuple[str, ...], size: Size) -> float:
    config = load_config(toml, settings)
    request = Request(
        train=config.train,
        optim=config.optim,
        content=read_deepspeed_json(str(claim.ROOT / size.deepspeed)),
        names=(size.deepspeed, str(toml)),
        card_name=CARD,
        card=find_card(CARD),
        nodes=1,
        per_node=1,
        corpus=PAIRS,
        mfu=MFU,
    )
    planner = Planner(request, FakeModel(build_without_weights(config.blueprint, config.data), config.data))
    return planner.step(planner.zero, planner.ranks, planner.pairs, planner.accumulation).seconds
