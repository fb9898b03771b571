"""The training runs that the tables need: their data, the weights they begin with, and which epoch is kept."""

from __future__ import annotations

from dataclasses import dataclass

RECALL, ACCURACY = "eval/mean_recall", "eval/accuracy"
"""The metrics by which ALBEF's scripts choose the best epoch."""


@dataclass(frozen=True)
class TrainingRun:
    """
    Attributes:
        recipe: its name in mvlm/configs.
        data: names of shards.
        start: the run whose weights it begins with; "" = the pretrained encoders.
        validation: shards to evaluate on after every epoch; "" = none, and the last checkpoint is used.
        measure: the metric of the validation by which the best epoch is chosen.
        settings: overrides of the recipe.
    """

    recipe: str
    data: tuple[str, ...]
    start: str = ""
    validation: str = ""
    measure: str = ""
    settings: tuple[str, ...] = ()


HALF = ("coco_train", "cc3m_halves/half")
ALBEF_LIKE = ("objectives.image=0", "objectives.text_mask_ratio=0.15")
"""ALBEF's objective on this model's layers (docs/claim.md)."""

ABLATION = ("itc", "itc_itm", "itc_itm_text", "itc_itm_image", "all", "masked_only", "independent", "masked_inputs")
RATIOS = ("image_50", "image_70", "text_15")
LIMITED = {"all": ("all", ()), "itc_itm": ("itc_itm", ()), "albef": ("all", ALBEF_LIKE)}
"""By name, the recipe and settings of runs on a share of the pairs."""
SHARES = {50: ("p10", "p15", "p25"), 25: ("p10", "p15"), 10: ("p10",)}
"""The parts that make up each share, in per cent; each share contains the next."""


def pretrained(recipe: str) -> TrainingRun:
    return TrainingRun(f"ablation/{recipe}", HALF)


def limited(name: str, share: int) -> TrainingRun:
    """A run on a share of the pairs, with as many updates as on all of them, and so more epochs."""
    recipe, settings = LIMITED[name]
    parts = tuple(f"{corpus}/{part}" for corpus in ("coco_parts", "cc3m_parts") for part in SHARES[share])
    longer = (f"train.epochs={30 * 100 / share:g}", f"optim.warmup_epochs={5 * 100 / share:g}")
    return TrainingRun(f"ablation/{recipe}", parts, settings=(*settings, *longer))


def on_flickr30k(start: str) -> TrainingRun:
    return TrainingRun("retrieval_flickr30k", ("flickr30k_train",), start, "flickr30k_val", RECALL)


def fine_tuned(recipe: str, data: tuple[str, ...], validation: str = "", measure: str = "") -> TrainingRun:
    return TrainingRun(recipe, data, "base_4m", validation, measure)


_LIMITED = {f"{name}_{share}": limited(name, share) for share in SHARES for name in LIMITED}
_PRETRAINED = (
    {"base_4m": TrainingRun("base_4m", ("coco_train", "vg", "cc3m", "sbu"))}
    | {name: pretrained(name) for name in (*ABLATION, *RATIOS)}
    | {"albef_100": TrainingRun("ablation/all", HALF, settings=ALBEF_LIKE)}
    | _LIMITED
)
RUNS = (
    _PRETRAINED
    | {f"{name}_flickr30k": on_flickr30k(name) for name in _PRETRAINED}
    | {
        "base_4m_coco": fine_tuned("retrieval_coco", ("coco_train",), "coco_val", RECALL),
        "base_4m_vqa": fine_tuned("vqa", ("vqa_trainval", "vg_qa")),
        "base_4m_nlvr2": fine_tuned("nlvr2", ("nlvr2_train",), "nlvr2_dev", ACCURACY),
        "base_4m_snli_ve": fine_tuned("entailment", ("snli_ve_train",), "snli_ve_dev", ACCURACY),
    }
)
"""By name, which is also that of the folder."""


def lineage(name: str) -> list[str]:
    """The run after those whose weights it begins with, earliest first."""
    start = RUNS[name].start
    return [*(lineage(start) if start else ()), name]
