"""The grid: cells of corpus, objective, share of the pairs, budget and seed, the order they run in, and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

SCENES, EMOJI = "scenes", "emoji"
ALL_FOUR, BASELINE, ALBEF = "all", "itc_itm", "albef"

ABLATION = {
    "itc": ("objectives.image=0", "objectives.text=0", "objectives.itm=0"),
    BASELINE: ("objectives.image=0", "objectives.text=0"),
    "itc_itm_text": ("objectives.image=0",),
    "itc_itm_image": ("objectives.text=0",),
    ALL_FOUR: (),
    "masked_only": ("objectives.itc=0", "objectives.itm=0"),
}
"""The rows of the paper's Table 5, as overrides of a configuration with all four losses."""

# ALBEF hides 15 % of the words and restores them from the whole image; its momentum model and queue are left out.
ALBEF_LIKE = {ALBEF: ("objectives.image=0", "objectives.text_mask_ratio=0.15")}

MASKING = {"hide_both": ("objectives.hide=both",)}
PAPERS_OWN = {
    "independent": ("objectives.reconstruct_from=self",),
    "masked_inputs": ("objectives.image=0", "objectives.text=0", "objectives.alignment_inputs=masked"),
}
"""Claims of the paper's abstract that none of its tables shows."""
RATIOS = {
    **{f"image_{ratio}": (f"objectives.image_mask_ratio={ratio / 100}",) for ratio in (25, 50, 70)},
    **{f"text_{ratio}": (f"objectives.text_mask_ratio={ratio / 100}",) for ratio in (15, 50)},
}

SAME = ("scenes", "image_70")  # the same as the default: both hide three of four blocks

OBJECTIVES: dict[str, tuple[str, ...]] = {**ABLATION, **ALBEF_LIKE, **MASKING, **RATIOS, **PAPERS_OWN}
"""By name, overrides of a size's TOML."""

SHARES = (100, 50, 25, 10)
"""Shares of the training pairs, in per cent; each contains the next."""

STEPS, COMPUTE = "steps", "compute"
"""What a cell spends as much of as all four losses on the same corpus do: updates, or operations."""


TUNES = {
    "retrieval": ("task.name=retrieval", "data.tokenizer=''"),
    "vqa": ("task.name=vqa", "data.tokenizer=''"),
}
"""What a pretrained cell may be fine-tuned for, on its pairs or the questions about them; as overrides."""
TUNED = (*ABLATION, ALBEF)
"""The objectives whose cells with all pairs are fine-tuned if asked for."""
FEW = 10
"""The share of the pairs whose cells, all four, ITC + ITM and ALBEF-like, are fine-tuned too, on those same pairs."""


@dataclass(frozen=True)
class Cell:
    """Args: tune: one of TUNES, which this cell is fine-tuned for after being pretrained; "" = it is not."""

    corpus: str
    objective: str
    share: int = 100
    budget: str = STEPS
    tune: str = ""
    seed: int = 0

    @property
    def kind(self) -> str:
        """The cell without its seed: `scenes/all/100`, `scenes/itc_itm/10/compute`, `scenes/all/100/vqa`."""
        compute = [COMPUTE] if self.budget == COMPUTE else []
        return "/".join([self.corpus, self.objective, str(self.share), *compute, *([self.tune] if self.tune else [])])

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.seed}"


def core(corpora: Iterable[str], seeds: Sequence[int]) -> list[Cell]:
    """All four losses against ITC + ITM, with all and with a tenth of the pairs."""
    return in_rounds(
        [
            Cell(corpus, objective, share)
            for corpus in corpora
            for share in (100, 10)
            for objective in (ALL_FOUR, BASELINE)
        ],
        seeds,
    )


def night(corpora: Iterable[str], seeds: Sequence[int], tunes: Sequence[str] = ()) -> list[Cell]:
    """Everything: the core's cells first in each round, then the ablation, limited data, equal compute and masking.

    Args:
        tunes: what cells are fine-tuned for besides; only scenes have questions.
    """
    corpora = list(corpora)
    kinds = core(corpora, [0])
    for corpus in corpora:
        kinds += [Cell(corpus, objective) for objective in (*ABLATION, *ALBEF_LIKE)]
        kinds += [Cell(corpus, name, share) for share in SHARES for name in (ALL_FOUR, BASELINE, ALBEF)]
        kinds += [Cell(corpus, name, share, COMPUTE) for share in SHARES for name in (BASELINE, ALBEF)]
        kinds += [Cell(corpus, objective) for objective in (*MASKING, *RATIOS) if (corpus, objective) != SAME]
        fitting = [tune for tune in tunes if tune != "vqa" or corpus == SCENES]
        kinds += [Cell(corpus, objective, tune=tune) for tune in fitting for objective in TUNED]
        kinds += [Cell(corpus, name, FEW, tune=tune) for tune in fitting for name in (ALL_FOUR, BASELINE, ALBEF)]
        kinds += [Cell(corpus, name, FEW, COMPUTE, tune) for tune in fitting for name in (BASELINE, ALBEF)]
    return in_rounds(list(dict.fromkeys(kinds)), seeds)


def in_rounds(kinds: Sequence[Cell], seeds: Sequence[int]) -> list[Cell]:
    """Each cell with every seed, seed by seed, so that cells to be compared have always been run equally often."""
    return [replace(cell, seed=seed) for seed in seeds for cell in kinds]


def matching(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Cells whose name begins with a pattern, part by part: `scenes/all/10` takes its seeds, `scenes` everything."""
    if not patterns:
        return list(cells)
    wanted = [pattern.strip("/").split("/") for pattern in patterns]
    return [cell for cell in cells if any(cell.name.split("/")[: len(parts)] == parts for parts in wanted)]


@dataclass(frozen=True)
class Contrast:
    """A question: is `treatment` better than `control`? Both are cells without a seed."""

    title: str
    treatment: Cell
    control: Cell


def contrasts(corpus: str) -> list[Contrast]:
    """Every comparison in the table, the core's first."""
    found = [
        Contrast(
            f"all four − (ITC + ITM), {share} % of the pairs",
            Cell(corpus, ALL_FOUR, share),
            Cell(corpus, BASELINE, share),
        )
        for share in (100, 10, 50, 25)
    ]
    found += [
        Contrast(
            f"all four − (ITC + ITM) at equal compute, {share} %",
            Cell(corpus, ALL_FOUR, share),
            Cell(corpus, BASELINE, share, COMPUTE),
        )
        for share in SHARES
    ]
    for budget, words in ((STEPS, "equal steps"), (COMPUTE, "equal compute")):
        found += [
            Contrast(
                f"all four − ALBEF-like at {words}, {share} %",
                Cell(corpus, ALL_FOUR, share),
                Cell(corpus, ALBEF, share, budget),
            )
            for share in SHARES
        ]
    found += [
        Contrast("ITM's part: (ITC + ITM) − ITC", Cell(corpus, BASELINE), Cell(corpus, "itc")),
        Contrast(
            "masked text's part: (ITC + ITM + text) − (ITC + ITM)", Cell(corpus, "itc_itm_text"), Cell(corpus, BASELINE)
        ),
        Contrast(
            "masked image's part: (ITC + ITM + image) − (ITC + ITM)",
            Cell(corpus, "itc_itm_image"),
            Cell(corpus, BASELINE),
        ),
        Contrast("one modality masked at a time − both at once", Cell(corpus, ALL_FOUR), Cell(corpus, "hide_both")),
    ]
    found += [question for tune in TUNES for question in _fine_tuned(corpus, tune)]
    return found + [
        Contrast(f"{name} − the default's 60 / 30", Cell(corpus, name), Cell(corpus, ALL_FOUR))
        for name in RATIOS
        if (corpus, name) != SAME
    ]


def _fine_tuned(corpus: str, tune: str) -> Iterator[Contrast]:
    control = Cell(corpus, BASELINE, tune=tune)
    for objective in (ALL_FOUR, "itc_itm_text", "itc_itm_image", "masked_only"):
        title = f"`{objective}` − (ITC + ITM), fine-tuned for {tune}"
        yield Contrast(title, Cell(corpus, objective, tune=tune), control)
    treatment = Cell(corpus, ALL_FOUR, FEW, tune=tune)
    for budget, words in ((STEPS, "equal steps"), (COMPUTE, "equal compute")):
        for name, control_words in ((BASELINE, "(ITC + ITM)"), (ALBEF, "ALBEF-like")):
            title = f"all four − {control_words} at {words}, {FEW} %, fine-tuned for {tune}"
            yield Contrast(title, treatment, Cell(corpus, name, FEW, budget, tune))
