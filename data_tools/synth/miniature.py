"""The published data sets in miniature: their files by name and form, with a few synthetic scenes for images.

COCO and Flickr30k in Karpathy's splits, Visual Genome, SBU, CC3M as img2dataset leaves it, VQA v2, NLVR2 and SNLI-VE,
laid out as `mvlm reproduce` expects the real ones. Some images of SBU and CC3M are missing, as always. The same seed
gives the same files.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .blocks import Dice, SyntheticSample
from .entailment import entailment
from .pairs import pairs
from .questions import questions
from .scenes import CELLS, Scene, describe, distinct_scenes, picture

COCO = {"train": 64, "restval": 16, "val": 8, "test": 8}
FLICKR30K = {"train": 48, "val": 8, "test": 8}
VISUAL_GENOME, SBU, CC3M = 16, 16, 96
VQA = {"train2014": 72, "val2014": 36, "test-dev2015": 18, "test2015": 36}
"""Questions; those of test-dev are the first of test's."""
NLVR2 = {"train": 32, "dev": 16, "test1": 16}
SNLI_VE = {"train": 36, "dev": 18, "test": 18}
SAYINGS = ("{}", "a picture of {}", "there is {}", "{} on white", "one can see {}")
"""Five sentences per image, as people have written for COCO and Flickr30k."""


def write_miniature(folder: Path, seed: int = 0) -> None:
    """Lay all of them out in a new folder."""
    captioned = sum(COCO.values()) + sum(FLICKR30K.values()) + VISUAL_GENOME + SBU + CC3M
    scenes = iter(Dice(f"miniature/{seed}").shuffled(distinct_scenes(captioned, seed)))
    _coco(folder / "coco", scenes)
    _flickr30k(folder / "flickr30k", scenes)
    _visual_genome(folder / "vg", list(islice(scenes, VISUAL_GENOME)))
    _sbu(folder / "sbu", list(islice(scenes, SBU)))
    _cc3m(folder / "cc3m", list(islice(scenes, CC3M)))
    _vqa(folder / "vqa", folder / "coco", seed)
    _nlvr2(folder / "nlvr2", seed)
    _snli_ve(folder / "snli_ve", folder / "flickr30k/flickr30k-images", seed)


def _coco(folder: Path, scenes: Iterator[Scene]) -> None:
    listed = []
    for number, (split, scene) in enumerate(_splits(COCO, scenes)):
        subset, cocoid = ("train2014" if split == "train" else "val2014"), 1000 + number
        name = _coco_name(subset, cocoid)
        _put(folder / subset / name, _jpeg(scene))
        listed.append({"filepath": subset, "filename": name, "cocoid": cocoid} | _karpathy(number, split, scene))
    _put_json(folder / "dataset_coco.json", {"images": listed, "dataset": "coco"})


def _flickr30k(folder: Path, scenes: Iterator[Scene]) -> None:
    listed = []
    for number, (split, scene) in enumerate(_splits(FLICKR30K, scenes)):
        name = f"{36979 + number}.jpg"
        _put(folder / "flickr30k-images" / name, _jpeg(scene))
        listed.append({"filename": name} | _karpathy(number, split, scene))
    _put_json(folder / "dataset_flickr30k.json", {"images": listed, "dataset": "flickr30k"})


def _karpathy(imgid: int, split: str, scene: Scene) -> dict[str, Any]:
    said = [saying.format(describe(scene)) for saying in SAYINGS]
    sentids = [5 * imgid + place for place in range(len(said))]
    sentences = [
        {"tokens": raw.replace(",", "").split(), "raw": raw, "imgid": imgid, "sentid": sentid}
        for raw, sentid in zip(said, sentids, strict=True)
    ]
    return {"sentids": sentids, "imgid": imgid, "sentences": sentences, "split": split}


def _visual_genome(folder: Path, scenes: Sequence[Scene]) -> None:
    described, asked = [], []
    for image_id, scene in enumerate(scenes, 1):
        _put(folder / ("VG_100K", "VG_100K_2")[image_id % 2] / f"{image_id}.jpg", _jpeg(scene))
        things = [(cell, thing) for cell, thing in enumerate(scene) if thing]
        regions = [
            {"region_id": 10 * image_id + cell, "image_id": image_id, "x": 16 * (cell % 2), "y": 16 * (cell // 2)}
            | {"width": 16, "height": 16, "phrase": f"a {colour} {shape} in the {CELLS[cell]}"}
            for cell, (colour, shape) in things
        ]
        whole = {"region_id": 10 * image_id + 9, "image_id": image_id, "x": 0, "y": 0, "width": 32, "height": 32}
        described.append({"id": image_id, "regions": [*regions, whole | {"phrase": f"{len(things)} things"}]})
        qas = [
            {"a_objects": [], "question": f"Is there a {colour} {shape}?", "image_id": image_id}
            | {"qa_id": 10 * image_id + cell, "answer": "Yes.", "q_objects": []}
            for cell, (colour, shape) in things
        ]
        asked.append({"id": image_id, "qas": qas})
    _put_json(folder / "region_descriptions.json", described)
    _put_json(folder / "question_answers.json", asked)


def _sbu(folder: Path, scenes: Sequence[Scene]) -> None:
    urls = [f"http://static.flickr.com/2723/{4385058960 + number}_b0f291e03e.jpg" for number in range(len(scenes))]
    for url, scene in list(zip(urls, scenes, strict=True))[1:]:
        _put(folder / "images" / url.rpartition("/")[2], _jpeg(scene))
    content = {"image_urls": urls, "user_ids": ["47889917@N08"] * len(urls), "captions": list(map(describe, scenes))}
    _put_json(folder / "sbu-captions-all.json", content)


def _cc3m(folder: Path, scenes: Sequence[Scene]) -> None:
    """Two shards of img2dataset, each a tar of what was downloaded and a table of what became of every URL."""
    half = len(scenes) // 2
    for shard, part in enumerate((scenes[:half], scenes[half:])):
        rows = []
        with tarfile.open(_made(folder / f"{shard:05d}.tar"), "w") as tar:
            for number, scene in enumerate(part):
                key = f"{shard:05d}{number:04d}"
                said = describe(scene)
                row: dict[str, Any] = {"key": key, "caption": said, "url": f"https://images.example.org/{key}.jpg"}
                lost = number == 0
                status = {"status": "failed_to_download" if lost else "success"}
                row |= status | {"error_message": "HTTP Error 404: Not Found" if lost else None}
                rows.append(row)
                if not lost:
                    files = {"jpg": _jpeg(scene), "json": json.dumps(row).encode(), "txt": said.encode()}
                    for suffix, data in files.items():
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        good = len(part) - 1
        _put_json(folder / f"{shard:05d}_stats.json", {"count": len(part), "successes": good, "failed_to_download": 1})


def _vqa(folder: Path, coco: Path, seed: int) -> None:
    """Its images lie among COCO's, with ids above those in Karpathy's file."""
    total = sum(VQA.values()) - VQA["test-dev2015"]
    samples, image_ids = list(questions(total, seed)), dict[Scene, int]()
    start = 0
    for subset in ("train2014", "val2014", "test2015"):
        asked, answered = [], []
        for sample in samples[start : start + VQA[subset]]:
            (scene,) = sample.scenes
            image_id = image_ids.setdefault(scene, 2000 + len(image_ids))
            _put(coco / subset / _coco_name(subset, image_id), _jpeg(scene))
            question_id = 1000 * image_id + sample.columns["question_id"]
            asked.append({"image_id": image_id, "question": sample.columns["question"], "question_id": question_id})
            answered.append(_annotation(sample, image_id, question_id))
        head = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": subset}
        _put_questions(folder, subset, head, asked)
        if subset == "test2015":
            _put_questions(folder, "test-dev2015", head, asked[: VQA["test-dev2015"]])
        else:
            _put_json(folder / f"v2_mscoco_{subset}_annotations.json", head | {"annotations": answered})
        start += VQA[subset]


def _put_questions(folder: Path, subset: str, head: dict[str, Any], asked: list[dict[str, Any]]) -> None:
    content = head | {"task_type": "Open-Ended", "data_subtype": subset, "questions": asked}
    _put_json(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", content)


def _annotation(sample: SyntheticSample, image_id: int, question_id: int) -> dict[str, Any]:
    answers = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(sample.columns["answers"], 1)
    ]
    return {
        "question_type": sample.columns["question_type"],
        "multiple_choice_answer": answers[0]["answer"],
        "answers": answers,
        "image_id": image_id,
        "answer_type": "other",
        "question_id": question_id,
    }


def _nlvr2(folder: Path, seed: int) -> None:
    samples = pairs(sum(NLVR2.values()), seed)
    for split, number in NLVR2.items():
        lines = []
        for place, sample in enumerate(islice(samples, number)):
            block, at = divmod(place, 8)  # of two pairs of images and four sentences, each about both
            stem, directory = f"{split}-{block}-{at % 2}", block % 3
            home = folder / "images" / split / (str(directory) if split == "train" else "")
            for side, scene in enumerate(sample.scenes):
                _put(home / f"{stem}-img{side}.png", picture(scene))
            lines.append(
                {"sentence": sample.columns["sentence"], "label": str(sample.columns["label"]), "writer": "60"}
                | {"left_url": "https://a.example.org/0.png", "right_url": "https://a.example.org/1.png"}
                | {"identifier": f"{stem}-{at // 2}", "synset": "scene", "query": "scene"}
                | ({"directory": directory} if split == "train" else {})
            )
        _put_lines(folder / f"{split}.json", lines)


def _snli_ve(folder: Path, images: Path, seed: int) -> None:
    """Its images are Flickr30k's."""
    samples, image_ids, numbers = entailment(sum(SNLI_VE.values()), seed), dict[Scene, int](), count()
    for split, number in SNLI_VE.items():
        lines = []
        for sample in islice(samples, number):
            (scene,) = sample.scenes
            image_id = image_ids.setdefault(scene, 7000000 + len(image_ids))
            _put(images / f"{image_id}.jpg", _jpeg(scene))
            label = sample.columns["label"]
            lines.append(
                {"annotator_labels": [label], "captionID": f"{image_id}.jpg#0", "gold_label": label}
                | {"pairID": f"{image_id}.jpg#{next(numbers)}r1{label[0]}", "sentence1": "a picture of things"}
                | {"sentence2": sample.columns["sentence"], "Flickr30K_ID": str(image_id)}
            )
        _put_lines(folder / f"snli_ve_{split}.jsonl", lines)


def _splits(sizes: dict[str, int], scenes: Iterator[Scene]) -> Iterator[tuple[str, Scene]]:
    names = chain.from_iterable([name] * size for name, size in sizes.items())
    return zip(names, scenes, strict=False)


def _coco_name(subset: str, image_id: int) -> str:
    return f"COCO_{subset}_{image_id:012d}.jpg"


def _jpeg(scene: Scene) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(scene))).save(out, "JPEG", quality=95)
    return out.getvalue()


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _put(path: Path, data: bytes) -> None:
    _made(path).write_bytes(data)


def _put_json(path: Path, content: Any) -> None:
    _put(path, json.dumps(content).encode())


def _put_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    _put(path, "".join(json.dumps(item) + "\n" for item in items).encode())
