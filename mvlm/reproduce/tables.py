"""The tables: what is measured on which runs, and the published numbers with their sources.

Numbers are per cent. A number that is in none of our sources is None and is printed as "–"; `sources` says which are
a reader's recollection of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mvlm.reproduce.runs import ABLATION, RUNS, SHARES, lineage


@dataclass(frozen=True)
class Evaluation:
    """`mvlm evaluate TASK` of a run (of its best epoch, if it has validation) on shards.

    Attributes:
        task: "figure" also draws reconstructions; "server" writes predictions for the server that scores them.
    """

    run: str
    task: Literal["retrieval", "vqa", "nlvr2", "entailment", "figure", "server"]
    data: str
    rerank: int = 0  # for retrieval


@dataclass(frozen=True)
class Cell:
    """A number in an evaluation's JSON, by its path there: a share, printed in per cent."""

    evaluation: Evaluation
    path: str = ""  # "" = known only to the server


@dataclass(frozen=True)
class TableRow:
    """What is measured for each column, and what was published; None = nothing, or not in our sources."""

    name: str
    measured: tuple[Cell | None, ...]
    paper: tuple[float | None, ...] = ()
    albef: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    protocol: tuple[str, ...]  # sentences
    sources: tuple[str, ...]  # of the published numbers

    @property
    def evaluations(self) -> list[Evaluation]:
        found = [cell.evaluation for row in self.rows for cell in row.measured if cell]
        return list(dict.fromkeys(found))

    @property
    def runs(self) -> list[str]:
        """The runs that it needs, each after the one it begins with."""
        return list(dict.fromkeys(name for each in self.evaluations for name in lineage(each.run)))

    @property
    def shards(self) -> list[str]:
        """The names of the shards for training, validation and evaluation."""
        runs = [RUNS[name] for name in self.runs]
        trained = [name for run in runs for name in (*run.data, *([run.validation] if run.validation else []))]
        return list(dict.fromkeys([each.data for each in self.evaluations] + trained))


def retrieval(run: str, data: str, rerank: int, itm: bool = True) -> tuple[Cell, Cell]:
    """R@1 of image and of text retrieval: re-ranked by ITM, or by ITC alone if the objective has no ITM."""
    evaluation, kind = Evaluation(run, "retrieval", data, rerank), "reranked" if itm else "itc"
    return Cell(evaluation, f"text_to_image.{kind}.r1"), Cell(evaluation, f"image_to_text.{kind}.r1")


def on_flickr30k(run: str, itm: bool = True) -> tuple[Cell, Cell]:
    return retrieval(run, "flickr30k_test", 128, itm)


def accuracy(run: str, task: Literal["nlvr2", "entailment"], data: str) -> Cell:
    return Cell(Evaluation(run, task, data), "accuracy")


def _of_ablation(name: str, paper: tuple[float | None, ...]) -> TableRow:
    has_zero_shot = name != "masked_only"  # without ITC and ITM, modalities are not aligned before fine-tuning
    zero_shot = on_flickr30k(name, itm=name != "itc") if has_zero_shot else (None, None)
    return TableRow(name, (*on_flickr30k(f"{name}_flickr30k"), *zero_shot), paper)


PUBLISHED_ABLATION: dict[str, tuple[float | None, ...]] = {
    "itc": (65.10, 80.10, 55.08, 68.40),
    "itc_itm": (79.96, 92.30, 69.50, 82.40),
    "itc_itm_text": (80.34, 92.00, 70.74, 84.40),
    "itc_itm_image": (80.12, 91.50, 69.26, 82.90),
    "all": (81.26, 94.10, 71.18, 85.60),
    "masked_only": (76.08, 90.30, None, None),
}
PUBLISHED_RATIOS = {
    "image_50": ("50 % of the image, 30 % of the text", (81.32, 93.30)),
    "all": ("60 % / 30 %", (81.26, 94.10)),
    "image_70": ("70 % / 30 %", (81.82, 93.60)),
    "text_15": ("60 % / 15 %", (80.30, 92.50)),
}
PAPER = "paper: Kwon et al., ICLR 2023 (arXiv 2208.02131), single runs"
ALBEF = "ALBEF: Li et al., NeurIPS 2021 (arXiv 2107.07651), pretrained on the same 4 M images"
ALBEF_ZERO_SHOT = (
    "ALBEF's zero-shot numbers as others list them (a summary of arXiv 2505.11216 for both sets, Papers with Code for "
    "COCO's); on Flickr30k it had been fine-tuned on COCO first."
)
IR_TR = ("image R@1", "text R@1")
BEST_EPOCH = "Of a fine-tuned run the epoch that is best on the validation set is tested, as ALBEF does"
ON_FLICKR30K = (
    "Flickr30k, the 1,000 test images of Karpathy's split with 5,000 captions; ITC finds 128 candidates, ITM re-ranks "
    "them.",
    f"{BEST_EPOCH}, by the mean of the six recalls.",
)
HALF_A_MILLION = (
    "Pretrained on COCO and half of CC3M for 30 epochs from DeiT (ImageNet-1k) and RoBERTa; one seed per run."
)
FOUR_MILLION = "Pretrained on COCO, Visual Genome, CC3M and SBU for 50 epochs from DeiT (ImageNet-1k) and RoBERTa."

TABLES = {
    "pretrain": Table(
        "Pretraining on 4 M images: the model itself, without fine-tuning",
        ("COCO image R@1", "COCO text R@1", "Flickr30k image R@1", "Flickr30k text R@1"),
        (TableRow("zero-shot", (*retrieval("base_4m", "coco_test", 256), *on_flickr30k("base_4m")), (), (50.1, 68.7)),),
        (FOUR_MILLION, "COCO's 5,000 test images (256 candidates re-ranked), Flickr30k's 1,000 (128)."),
        (ALBEF_ZERO_SHOT,),
    ),
    "ablation": Table(
        "Loss ablation, with two rows that the abstract speaks of",
        ("fine-tuned image R@1", "fine-tuned text R@1", "zero-shot image R@1", "zero-shot text R@1"),
        tuple(_of_ablation(name, PUBLISHED_ABLATION.get(name, ())) for name in ABLATION),
        (
            HALF_A_MILLION,
            *ON_FLICKR30K,
            "itc is ranked by ITC alone before it is fine-tuned with ITC and ITM, like all rows.",
            "independent: each modality is reconstructed without the other; masked_inputs: alignment on masked inputs, "
            "nothing reconstructed.",
        ),
        (PAPER + ", loss ablation",),
    ),
    "masking": Table(
        "Masking ratios, fine-tuned",
        IR_TR,
        tuple(
            TableRow(words, on_flickr30k(f"{name}_flickr30k"), paper)
            for name, (words, paper) in PUBLISHED_RATIOS.items()
        ),
        (HALF_A_MILLION, *ON_FLICKR30K),
        (PAPER + ", masking ratios",),
    ),
    "limited_data": Table(
        "Limited data: all four losses, ITC + ITM, and ALBEF's objective on this model's layers",
        ("fine-tuned image R@1", "fine-tuned text R@1", "zero-shot image R@1", "zero-shot text R@1"),
        tuple(
            TableRow(
                f"{share} %, {name}",
                (*on_flickr30k(f"{run}_flickr30k"), *on_flickr30k(run)),
                PUBLISHED_ABLATION.get(run, ()),
            )
            for share in (100, *SHARES)
            for name, run in (
                (name, name if share == 100 and name != "albef" else f"{name}_{share}")
                for name in ("all", "itc_itm", "albef")
            )
        ),
        (
            HALF_A_MILLION,
            "Of its pairs 50, 25 and 10 %, each in the one before; as many updates with fewer pairs.",
            *ON_FLICKR30K,
        ),
        (PAPER + ", loss ablation; its figure of limited data gives no numbers in our sources",),
    ),
    "coco": Table(
        "COCO retrieval",
        IR_TR,
        (
            TableRow("zero-shot", retrieval("base_4m", "coco_test", 256), (), (50.1, 68.7)),
            TableRow("fine-tuned", retrieval("base_4m_coco", "coco_test", 256), (60.1, 76.3), (56.8, 73.1)),
        ),
        (
            FOUR_MILLION,
            "COCO, the 5,000 test images of Karpathy's split; ITC finds 256 candidates, ITM re-ranks them.",
            f"{BEST_EPOCH}, by the mean of the six recalls on its 5,000 validation images.",
        ),
        (PAPER, ALBEF, ALBEF_ZERO_SHOT),
    ),
    "flickr30k": Table(
        "Flickr30k retrieval",
        IR_TR,
        (
            TableRow("zero-shot", on_flickr30k("base_4m")),
            TableRow("zero-shot, fine-tuned on COCO as ALBEF", on_flickr30k("base_4m_coco"), (), (76.8, 90.5)),
            TableRow("fine-tuned", on_flickr30k("base_4m_flickr30k")),
        ),
        (FOUR_MILLION, *ON_FLICKR30K, "The paper's zero-shot is of the pretrained model itself."),
        (ALBEF_ZERO_SHOT,),
    ),
    "vqa": Table(
        "VQA v2",
        ("test-dev", "test-std"),
        (
            TableRow(
                "accuracy",
                tuple(Cell(Evaluation("base_4m_vqa", "server", data)) for data in ("vqa_test_dev", "vqa_test")),
                (75.45, 75.40),
            ),
        ),
        (
            FOUR_MILLION,
            "Trained on train, val and Visual Genome's questions, and the last epoch is tested, as ALBEF does; one of "
            "the frequent answers is chosen.",
            "Only the server knows the scores: upload the predictions to EvalAI.",
        ),
        (PAPER + ", as remembered by a reader",),
    ),
    "nlvr2": Table(
        "NLVR2",
        ("dev", "test-P"),
        (
            TableRow(
                "accuracy",
                (accuracy("base_4m_nlvr2", "nlvr2", "nlvr2_dev"), accuracy("base_4m_nlvr2", "nlvr2", "nlvr2_test")),
                (81.58, 81.98),
            ),
        ),
        (
            FOUR_MILLION,
            f"{BEST_EPOCH}, by accuracy on dev. ALBEF pretrains once more for pairs of images, which this does not.",
        ),
        (PAPER + ", as remembered by a reader",),
    ),
    "snli_ve": Table(
        "SNLI-VE",
        ("val", "test"),
        (
            TableRow(
                "accuracy",
                (
                    accuracy("base_4m_snli_ve", "entailment", "snli_ve_dev"),
                    accuracy("base_4m_snli_ve", "entailment", "snli_ve_test"),
                ),
            ),
        ),
        (FOUR_MILLION, f"{BEST_EPOCH}, by accuracy on val."),
        ("Our sources give no published number for SNLI-VE.",),
    ),
    "reconstruction": Table(
        "Reconstruction figure, and how much the other modality tells",
        ("words right, %", "without the image", "with a wrong one"),
        (
            TableRow(
                "masked words",
                tuple(
                    Cell(Evaluation("base_4m", "figure", "coco_test"), f"word_accuracy.{kind}")
                    for kind in ("right", "none", "wrong")
                ),
            ),
        ),
        (
            FOUR_MILLION,
            "The figure: test images of COCO, each whole, as shown to the model, and reconstructed with its caption "
            "and without one.",
        ),
        ("The paper's figure shows examples and no numbers.",),
    ),
}
"""By name, as `mvlm reproduce list` shows them."""
