"""The shards that the tables need, each with the `mvlm-data` command that makes them.

In the words of a command, `{data}` is the folder of the downloaded data sets and `{shards}` that of the shards. What is
in the first must exist; what is in the second is made beforehand. Commands and sizes are those of docs/paper_data.md.
"""

from __future__ import annotations

from dataclasses import dataclass

DATA, SHARDS = "{data}/", "{shards}/"


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards.

    Attributes:
        source: the words that name a source, for `shard` and for `count`; empty if it is made from other shards.
        making: the command and its other words; `--out` is added.
        rows, pairs: as published, of everything listed; 0 = not in our sources.
        said_by: where the numbers were published.
    """

    source: tuple[str, ...] = ()
    making: tuple[str, ...] = ("shard",)
    rows: int = 0
    pairs: int = 0
    said_by: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return (self.making[0], *self.source, *self.making[1:])

    @property
    def needs(self) -> list[str]:
        """The names of the shards that it is made from or refers to."""
        return [word.removeprefix(SHARDS) for word in self.words if word.startswith(SHARDS)]

    @property
    def files(self) -> list[str]:
        """Files and folders of the data sets that are read, relative to the data folder."""
        return [word.removeprefix(DATA) for word in self.source if word.startswith(DATA)]


KARPATHY, ALBEF, VQA2 = "Karpathy's split", "ALBEF, table 6", "Goyal et al., 2017"
NLVR2, SNLI_VE = "Suhr et al., 2019", "Xie et al., 2019"
WITHOUT_TESTS = ("shard", "--longest-side", "512", "--exclude", "{shards}/flickr30k_test", "{shards}/coco_test")


def _coco(*subsets: str) -> tuple[str, ...]:
    return ("karpathy", "{data}/coco/dataset_coco.json", "--images", "{data}/coco", "--subset", ",".join(subsets))


def _flickr30k(subset: str) -> tuple[str, ...]:
    folder = "{data}/flickr30k"
    return (
        *("karpathy", f"{folder}/dataset_flickr30k.json", "--images", f"{folder}/flickr30k-images"),
        *("--subset", subset),
    )


def _vqa(*subsets: str, answered: bool = True) -> tuple[str, ...]:
    asked = [f"{{data}}/vqa/v2_OpenEnded_mscoco_{subset}_questions.json" for subset in subsets]
    answers = ("--annotations", *_answers(*subsets)) if answered else ()
    return ("vqa", *asked, "--images", "{data}/coco", *answers)


def _answers(*subsets: str) -> list[str]:
    return [f"{{data}}/vqa/v2_mscoco_{subset}_annotations.json" for subset in subsets]


def _snli_ve(split: str) -> tuple[str, ...]:
    return ("entailment", f"{{data}}/snli_ve/snli_ve_{split}.jsonl", "--images", "{data}/flickr30k/flickr30k-images")


def _nlvr2(split: str) -> tuple[str, ...]:
    return ("nlvr2", f"{{data}}/nlvr2/{split}.json", "--images", "{data}/nlvr2")


def _parts(corpus: str, shares: str) -> tuple[str, ...]:
    return ("split", f"{{shards}}/{corpus}", "--split", shares, "--split-by", "crc32")


CORPORA = {
    "flickr30k_test": ShardSet(_flickr30k("test"), rows=1_000, pairs=5_000, said_by=KARPATHY),
    "coco_test": ShardSet(_coco("test"), rows=5_000, pairs=25_010, said_by=KARPATHY),
    "coco_val": ShardSet(_coco("val"), rows=5_000, pairs=25_010, said_by=KARPATHY),
    "coco_train": ShardSet(_coco("train", "restval"), rows=113_287, pairs=566_747, said_by=KARPATHY),
    "vg": ShardSet(
        ("vg", "{data}/vg/region_descriptions.json", "--images", "{data}/vg"),
        (*WITHOUT_TESTS, "{shards}/coco_val"),
        pairs=769_000,
        said_by=ALBEF,
    ),
    "cc3m": ShardSet(("img2dataset", "{data}/cc3m"), WITHOUT_TESTS, pairs=2_950_000, said_by=ALBEF),
    "sbu": ShardSet(
        ("sbu", "{data}/sbu/sbu-captions-all.json", "--images", "{data}/sbu/images"),
        WITHOUT_TESTS,
        pairs=860_000,
        said_by=ALBEF,
    ),
    "cc3m_halves": ShardSet(making=_parts("cc3m", "half=0.5,rest=0.5")),
    # For limited data: the first part is a tenth, the first two a quarter, the first three a half. CC3M's first
    # four are the half above, which cannot itself be split: by the hash that made it, some parts would be empty.
    "coco_parts": ShardSet(making=_parts("coco_train", "p10=0.1,p15=0.15,p25=0.25,p50=0.5")),
    "cc3m_parts": ShardSet(making=_parts("cc3m", "p10=0.05,p15=0.075,p25=0.125,p50=0.25,rest=0.5")),
    "flickr30k_val": ShardSet(_flickr30k("val"), rows=1_014, pairs=5_070, said_by=KARPATHY),
    "flickr30k_train": ShardSet(_flickr30k("train"), rows=29_000, pairs=145_000, said_by=KARPATHY),
    "vqa_trainval": ShardSet(_vqa("train2014", "val2014"), pairs=443_757 + 214_354, said_by=VQA2),
    "vg_qa": ShardSet(
        (
            *("vg_qa", "{data}/vg/question_answers.json", "--images", "{data}/vg"),
            *("--annotations", *_answers("train2014", "val2014")),
        ),
        pairs=485_000,
        said_by="Anderson et al., 2018",
    ),
    "vqa_test_dev": ShardSet(_vqa("test-dev2015", answered=False), pairs=107_394, said_by=VQA2),
    "vqa_test": ShardSet(_vqa("test2015", answered=False), pairs=447_793, said_by=VQA2),
    "nlvr2_train": ShardSet(_nlvr2("train"), pairs=86_373, said_by=NLVR2),
    "nlvr2_dev": ShardSet(_nlvr2("dev"), pairs=6_982, said_by=NLVR2),
    "nlvr2_test": ShardSet(_nlvr2("test1"), pairs=6_967, said_by=NLVR2),
    "snli_ve_train": ShardSet(_snli_ve("train"), pairs=529_527, said_by=SNLI_VE),
    "snli_ve_dev": ShardSet(_snli_ve("dev"), pairs=17_858, said_by=SNLI_VE),
    "snli_ve_test": ShardSet(_snli_ve("test"), pairs=17_901, said_by=SNLI_VE),
}
"""By name, which is also that of the folder."""


def folder_of(name: str) -> str:
    """The corpus that shards belong to: `cc3m_halves` for `cc3m_halves/half`."""
    return name.partition("/")[0]


def in_order(names: list[str]) -> list[str]:
    """These corpora and those that they need, in order of dependency."""
    found: dict[str, None] = {}
    for name in map(folder_of, names):
        found |= dict.fromkeys([*in_order(CORPORA[name].needs), name])
    return list(found)
