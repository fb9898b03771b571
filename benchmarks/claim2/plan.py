"""What docs/claim2.md lays down: arms, shares, seeds, rates, contrasts and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from benchmarks.claim.grid import ABLATION, ALBEF_LIKE, PAPERS_OWN

JOINT, INDEPENDENT, BASELINE = "joint", "independent", "itc_itm"

ARMS: dict[str, tuple[str, ...]] = {
    BASELINE: ABLATION[BASELINE],
    "masked_inputs": PAPERS_OWN["masked_inputs"],
    INDEPENDENT: PAPERS_OWN[INDEPENDENT],
    "albef": ALBEF_LIKE["albef"],
    JOINT: (),
}
"""By name, overrides of a size's TOML."""

SHARES = (4, 20, 100)
"""Shares of the training pairs, in per cent; each is contained in the next."""

PRIMARY_SHARE = 20
PRIMARY_CONTRASTS = ((JOINT, INDEPENDENT), (JOINT, BASELINE))
PRIMARY_MEASURES = ("foils", "recall")

CONTRAST = "contrast"
"""The arm of the cells, one for each share and seed, whose weights the cells of all other arms begin with."""
CONTRAST_ALONE = ("objectives.image=0", "objectives.text=0", "objectives.itm=0")

RATES = (1 / 3, 1.0, 3.0)
"""Learning rates to select among, as multiples of the size's own."""
RATE_SEED = 1000
"""The seed of the cells that select a rate; no cell of the grid has it."""

CURVE = 6
"""Evaluations on the validation rows during a cell."""


@dataclass(frozen=True)
class Size:
    """Attributes:
    toml: of the model; its `train.steps` are the joint arm's.
    contrast: steps, batch and rate of the contrastive training that comes first.
    scenes: a size of benchmarks.claim, for the synthetic world.
    deepspeed: a DeepSpeed JSON; without a GPU, that of benchmarks.claim is used instead.
    seeds, primary_seeds: of a cell of the grid, and of the two primary contrasts' cells.
    pairs: to train on at most; 0 = all.
    rows: of each held-out sample that is searched.
    foils: rows of foils used; 0 = all.
    processes: that share the cells.
    dictionary: whether the image encoder is built from a share's own patches.
    settings, scene_settings: overrides of the two TOMLs.
    """

    name: str
    toml: str
    contrast: tuple[str, ...]
    scenes: str
    deepspeed: str
    seeds: int = 5
    primary_seeds: int = 10
    pairs: int = 0
    rows: int = 1500
    foils: int = 0
    processes: int = 1
    dictionary: bool = False
    settings: tuple[str, ...] = ()
    scene_settings: tuple[str, ...] = ()


_FOLDER = "benchmarks/claim2/sizes"
SIZES = {
    "small": Size(
        "small",
        f"{_FOLDER}/small.toml",
        ("train.steps=600", "train.global_batch=256", "optim.lr=4e-3"),
        "small",
        "benchmarks/claim/sizes/cpu.json",
        dictionary=True,
    ),
    "gpu": Size(
        "gpu",
        f"{_FOLDER}/gpu.toml",
        ("train.steps=350",),
        "small",
        "ds_configs/zero1.json",
        processes=8,
        scene_settings=("train.steps=400", "train.global_batch=256"),
    ),
    "rehearse": Size(
        "rehearse",
        f"{_FOLDER}/small.toml",
        ("train.steps=2",),
        "small",
        "benchmarks/claim/sizes/cpu.json",
        seeds=1,
        primary_seeds=2,
        pairs=600,
        rows=24,
        foils=24,
        dictionary=True,
        settings=(
            "train.steps=2",
            "train.global_batch=8",
            "objectives.itm_group=4",
            "objectives.image_mask_block=1",
            "eval.rerank=2",
            "model.vision_args={embed_dim=16}",
            "model.text_args={hidden_size=16, num_hidden_layers=0, num_attention_heads=2, intermediate_size=32, "
            "max_position_embeddings=64}",
            "model.cross_depth=1",
            "model.cross_heads=2",
        ),
        scene_settings=("train.steps=4", "train.global_batch=16", "optim.warmup_steps=1", "eval.limit=16"),
    ),
}
"""`rehearse` shows that the whole campaign runs to its end; its scores mean nothing and are not kept."""


@dataclass(frozen=True)
class IconCell:
    """One training run on icons.

    Args:
        arm: one of ARMS, or CONTRAST.
        rate: multiple of the size's learning rate that a selection tries; 0 = the selected one.
    """

    arm: str
    share: int
    seed: int
    rate: float = 0.0

    @property
    def name(self) -> str:
        rate = f"/rate{self.rate:.2f}" if self.rate else ""
        return f"icons/{self.arm}/{self.share}{rate}/{self.seed}"


def rate_cells() -> list[IconCell]:
    return [IconCell(arm, PRIMARY_SHARE, RATE_SEED, rate) for arm, rate in product(ARMS, RATES)]


def in_turn(size: Size) -> list[list[IconCell]]:
    """All cells on icons, in parts that each need those before; what the primary contrasts need comes first."""
    primary = {arm for contrast in PRIMARY_CONTRASTS for arm in contrast}
    count = size.primary_seeds * len(primary)
    cells, rates = grid(size), rate_cells()
    first = begun_from([*rates, *cells[:count]])
    return [
        first,
        [cell for cell in rates if cell.arm in primary],
        cells[:count],
        [cell for cell in begun_from(cells) if cell not in first],
        [cell for cell in rates if cell.arm not in primary],
        cells[count:],
    ]


def begun_from(cells: Iterable[IconCell]) -> list[IconCell]:
    """The cells that these begin with, each once."""
    return list(dict.fromkeys(IconCell(CONTRAST, cell.share, cell.seed) for cell in cells))


def grid(size: Size) -> list[IconCell]:
    """What the primary contrasts need, then the rest, seed by seed."""
    primary = [arm for arm in ARMS if any(arm in contrast for contrast in PRIMARY_CONTRASTS)]
    cells = [IconCell(arm, PRIMARY_SHARE, seed) for seed, arm in product(range(size.primary_seeds), primary)]
    cells += [IconCell(arm, share, seed) for seed, share, arm in product(range(size.seeds), SHARES, ARMS)]
    return list(dict.fromkeys(cells))
