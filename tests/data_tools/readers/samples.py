"""A few records of every source, laid out on disk as its authors publish them or its downloader stores them.

Nothing here uses the readers: file names, fields and their order are those of the published files.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from made import photo

from tests.tars import add_file


@dataclass
class Sample:
    """How to shard a source, the rows expected, and one image file with the keys of the rows that need it."""

    argv: list[Any]
    rows: dict[str, dict[str, Any]]  # columns by key, in order
    image: Path | None = None
    lost: list[str] = field(default_factory=list)
    where: str = ""  # of the first row lost


def put(path: Path, data: bytes) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def put_json(path: Path, content: Any) -> Path:
    put(path, json.dumps(content).encode())
    return path


def put_lines(path: Path, items: list[dict[str, Any]]) -> Path:
    put(path, "".join(json.dumps(item) + "\n" for item in items).encode())
    return path


def coco(folder: Path) -> Sample:
    ids = [203564, 322141, 16977]
    images = {n: put(folder / f"images/train2017/{n:012d}.jpg", photo(n)) for n in ids}
    captions = {n: [f"A bicycle replica {n} with a clock.", f"The bike {n} has a clock as a tire."] for n in ids}
    head = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
    listed = [
        {
            "license": 4,
            "file_name": f"{n:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{n:012d}.jpg",
        }
        | {"height": 18, "width": 24, "date_captured": "2013-11-14 11:18:45", "flickr_url": "", "id": n}
        for n in ids
    ]
    # Annotations do not follow the order of the images.
    order = [(ids[2], 0), (ids[0], 0), (ids[1], 0), (ids[0], 1), (ids[2], 1), (ids[1], 1)]
    annotations = [{"image_id": n, "id": i, "caption": captions[n][c]} for i, (n, c) in enumerate(order, 37)]
    content = {
        "info": head,
        "licenses": [{"url": "", "id": 4, "name": ""}],
        "images": listed,
        "annotations": annotations,
    }
    path = put_json(folder / "annotations/captions_train2017.json", content)
    rows = {str(n): {"image": images[n], "captions": captions[n], "source": "coco"} for n in ids}
    lost = folder / f"images/train2017/{ids[1]:012d}.jpg"
    argv = ["coco", path, "--images", folder / "images"]
    return Sample(argv, rows, lost, [str(ids[1])], "captions_train2017.json:2")


def karpathy_coco(folder: Path) -> Sample:
    parts = [("val2014", 391895, "test"), ("train2014", 57870, "train"), ("val2014", 522418, "restval")]
    listed, rows = [], {}
    for imgid, (filepath, cocoid, split) in enumerate(parts):
        name = f"COCO_{filepath}_{cocoid:012d}.jpg"
        image = put(folder / filepath / name, photo(cocoid))
        raws = [f"A man {cocoid} with a red helmet.", f"Man riding a motor bike {cocoid}."]
        sentences = [
            {"tokens": raw.lower().rstrip(".").split(), "raw": raw, "imgid": imgid, "sentid": 770337 + i}
            for i, raw in enumerate(raws)
        ]
        listed.append(
            {"filepath": filepath, "sentids": [770337, 770338], "filename": name, "imgid": imgid, "split": split}
            | {"sentences": sentences, "cocoid": cocoid}
        )
        rows[str(cocoid)] = {"image": image, "captions": raws, "source": "coco"}
    path = put_json(folder / "dataset_coco.json", {"images": listed, "dataset": "coco"})
    lost = folder / "val2014/COCO_val2014_000000522418.jpg"
    return Sample(["karpathy", path, "--images", folder], rows, lost, ["522418"], "dataset_coco.json:3")


def karpathy_flickr(folder: Path) -> Sample:
    listed, rows = [], {}
    for imgid, (stem, split) in enumerate([("1000092795", "train"), ("10002456", "val"), ("1000268201", "test")]):
        image = put(folder / f"flickr30k-images/{stem}.jpg", photo(imgid))
        raws = [f"Two young guys {imgid} with shaggy hair.", f"Two men {imgid} are outside."]
        sentences = [{"tokens": raw.split(), "raw": raw, "imgid": imgid, "sentid": i} for i, raw in enumerate(raws)]
        listed.append(
            {"sentids": [0, 1], "imgid": imgid, "sentences": sentences, "split": split, "filename": f"{stem}.jpg"}
        )
        rows[stem] = {"image": image, "captions": raws, "source": "flickr30k"}
    path = put_json(folder / "dataset_flickr30k.json", {"images": listed, "dataset": "flickr30k"})
    images = folder / "flickr30k-images"
    argv = ["karpathy", path, "--images", images]
    return Sample(argv, rows, images / "1000092795.jpg", ["1000092795"], "dataset_flickr30k.json:1")


URLS = [f"http://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/{n}/image.jpg?imgmax=640" for n in range(4)]


def downloads(folder: Path, name_of: Callable[[int, str], str]) -> tuple[Path, dict[str, dict[str, Any]], Path]:
    """Conceptual Captions' TSV, which has no header, its rows, and the image of the third. All images are written."""
    captions = [f'a very typical bus station {n} , with « quotes » and " inches' for n in range(4)]
    tsv = folder / "Train_GCC-training.tsv"
    put(tsv, "".join(f"{c}\t{u}\n" for c, u in zip(captions, URLS, strict=True)).encode())
    paths = [folder / "training" / name_of(n, url) for n, url in enumerate(URLS)]
    rows = {
        f"{n:08d}": {"image": put(paths[n], photo(n)), "captions": [captions[n]], "source": "cc"} for n in (0, 1, 2, 3)
    }
    return tsv, rows, paths[2]


def cc(naming: str, name_of: Callable[[int, str], str]) -> Callable[[Path], Sample]:
    def write(folder: Path) -> Sample:
        tsv, rows, lost = downloads(folder, name_of)
        argv = ["cc", tsv, "--images", folder / "training", "--names", naming]
        return Sample(argv, rows, lost, ["00000002"], "Train_GCC-training.tsv:3")

    return write


def cc_mapped(folder: Path) -> Sample:
    tsv, rows, lost = downloads(folder, lambda n, url: f"part-{n % 2}/{n * 7}.jpg")
    mapping = "".join(f"{url}\tpart-{n % 2}/{n * 7}.jpg\n" for n, url in enumerate(URLS))
    put(folder / "names.tsv", mapping.encode())
    argv = ["cc", tsv, "--images", folder / "training", "--names", folder / "names.tsv"]
    return Sample(argv, rows, lost, ["00000002"], "Train_GCC-training.tsv:3")


def cc12m(folder: Path) -> Sample:
    """CC12M's TSV has the URL first."""
    image = put(folder / "images/0000.jpg", photo(1))
    put(folder / "cc12m.tsv", f"{URLS[0]}\t<PERSON> was the first US president\n".encode())
    rows = {"00000000": {"image": image, "captions": ["<PERSON> was the first US president"], "source": "cc"}}
    argv = ["cc", folder / "cc12m.tsv", "--images", folder / "images", "--names", "row0"]
    return Sample(argv, rows)


def sbu(folder: Path) -> Sample:
    names = ["4385058960_b0f291553e.jpg", "2148610824_a4ad2f1bd1.jpg", "3765401329_7ea57e5e9c.jpg"]
    urls = [f"http://static.flickr.com/272{n}/{name}" for n, name in enumerate(names)]
    captions = [f"a wooden chair {n} in the living room" for n in range(3)]
    content = {"image_urls": urls, "user_ids": ["47889917@N08"] * 3, "captions": captions}
    path = put_json(folder / "sbu-captions-all.json", content)
    rows = {
        f"{n:07d}": {"image": put(folder / "sbu" / names[n], photo(n)), "captions": [captions[n]], "source": "sbu"}
        for n in range(3)
    }
    argv = ["sbu", path, "--images", folder / "sbu"]
    return Sample(argv, rows, folder / "sbu" / names[1], ["0000001"], "sbu-captions-all.json:2")


def vg(folder: Path) -> Sample:
    content, rows = [], {}
    for n, part in ((1, "VG_100K_2"), (2, "VG_100K"), (2417997, "VG_100K_2")):
        image = put(folder / f"visual_genome/{part}/{n}.jpg", photo(n))
        phrases = [f"the clock {n} is green in colour", "shade is along the street "]
        regions = [
            {"region_id": 1382 + i, "width": 82, "height": 139, "image_id": n, "phrase": phrase, "y": 57, "x": 421}
            for i, phrase in enumerate(phrases)
        ]
        content.append({"regions": regions, "id": n})
        rows[str(n)] = {"image": image, "captions": [phrase.strip() for phrase in phrases], "source": "vg"}
    path = put_json(folder / "region_descriptions.json", content)
    argv = ["vg", path, "--images", folder / "visual_genome"]
    return Sample(argv, rows, folder / "visual_genome/VG_100K/2.jpg", ["2"], "region_descriptions.json:2")


def vqa(folder: Path) -> Sample:
    asked = [(458752000, 458752, "What is this photo taken looking through?"), (458752001, 458752, "What position?")]
    asked.append((262146000, 262146, "Is the sky blue?"))
    images = {n: put(folder / f"train2014/COCO_train2014_{n:012d}.jpg", photo(n)) for n in (458752, 262146)}
    info = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "train2014", "license": {"url": "x"}}
    questions = [{"image_id": image, "question": text, "question_id": n} for n, image, text in asked]
    answers = {n: [f"net {n}"] * 7 + ["netting", "mesh", "net"] for n, _, _ in asked}
    annotations = [
        {"question_type": "what is this", "multiple_choice_answer": f"net {n}"}
        | {"answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers[n], 1)]}
        | {"image_id": image, "answer_type": "other", "question_id": n}
        for n, image, _ in asked
    ]
    asked_file = put_json(
        folder / "v2_OpenEnded_mscoco_train2014_questions.json",
        info | {"task_type": "Open-Ended", "questions": questions},
    )
    # Annotations may be in another order than the questions.
    answered = put_json(folder / "v2_mscoco_train2014_annotations.json", info | {"annotations": annotations[::-1]})
    rows = {
        str(n): {"image": images[image], "source": "vqa", "question_id": n, "question": text}
        | {"answers": answers[n], "question_type": "what is this"}
        for n, image, text in asked
    }
    argv = ["vqa", asked_file, "--annotations", answered, "--images", folder]
    lost = folder / f"train2014/COCO_train2014_{458752:012d}.jpg"
    return Sample(argv, rows, lost, ["458752000", "458752001"], f"{asked_file.name}:1")


def vqa_test(folder: Path) -> Sample:
    """test-dev and test-std: questions alone."""
    asked = [(262144000, 262144, "Is the ball flying towards the batter?"), (393243001, 393243, "What is it?")]
    images = {n: put(folder / f"test2015/COCO_test2015_{n:012d}.jpg", photo(n)) for _, n, _ in asked}
    questions = [{"image_id": image, "question": text, "question_id": n} for n, image, text in asked]
    info = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "test-dev2015", "license": {"url": "x"}}
    content = info | {"task_type": "Open-Ended", "questions": questions}
    path = put_json(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", content)
    rows = {
        str(n): {"image": images[image], "source": "vqa", "question_id": n, "question": text}
        | {"answers": [], "question_type": ""}
        for n, image, text in asked
    }
    lost = folder / "test2015/COCO_test2015_000000393243.jpg"
    return Sample(["vqa", path, "--images", folder], rows, lost, ["393243001"], f"{path.name}:2")


def vg_qa(folder: Path) -> Sample:
    """Each image has three questions. The answers "2" and "clock" are frequent in VQA, but not "pole"."""
    given = ["two"] * 9 + ["clock"] * 9 + ["pole"] * 8
    annotations = [
        {"question_type": "what is", "multiple_choice_answer": answer, "image_id": n, "answer_type": "other"}
        | {"answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}], "question_id": n}
        for n, answer in enumerate(given)
    ]
    known = put_json(folder / "v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    content, rows = [], {}
    for n, part in ((1, "VG_100K_2"), (2, "VG_100K")):
        image = put(folder / f"visual_genome/{part}/{n}.jpg", photo(n))
        qas = [
            {"a_objects": [], "question": f"{question} {n}?", "image_id": n, "qa_id": 986768 + 10 * n + i}
            | {"answer": answer, "q_objects": []}
            for i, (question, answer) in enumerate([("How many", "Two."), ("What", "A clock."), ("Where", "Pole.")])
        ]
        content.append({"id": n, "qas": qas})
        for qa in qas[:2]:
            rows[str(qa["qa_id"])] = {"image": image, "source": "vg_qa", "question_id": qa["qa_id"]} | {
                "question": qa["question"],
                "answers": [qa["answer"]],
                "question_type": "",
            }
    path = put_json(folder / "question_answers.json", content)
    argv = ["vg_qa", path, "--annotations", known, "--images", folder / "visual_genome"]
    lost = folder / "visual_genome/VG_100K/2.jpg"
    return Sample(argv, rows, lost, ["986788", "986789"], "question_answers.json:4")


def nlvr2(folder: Path) -> Sample:
    listed = [("train-10171-0-0", "True", 37), ("train-4100-1-1", "False", 8), ("train-10171-1-0", "False", 37)]
    items, rows = [], {}
    for n, (identifier, label, directory) in enumerate(listed):
        stem = identifier.rpartition("-")[0]
        left, right = (
            put(folder / f"images/train/{directory}/{stem}-img{side}.png", photo(10 * n + side, "PNG"))
            for side in (0, 1)
        )
        sentence = f"An image shows leather pencil cases {n} displayed upright."
        items.append(
            {"validation": {"1_0": label}, "sentence": sentence, "left_url": "https://a/b.jpg", "label": label}
            | {"identifier": identifier, "right_url": "https://a/c.jpg", "writer": "60", "directory": directory}
            | {"synset": "pencil box", "query": "pencil cases0", "extra_validations": {}}
        )
        group = "-".join(identifier.split("-")[i] for i in (0, 1, 3))
        rows[identifier] = {
            "image": left,
            "image2": right,
            "sentence": sentence,
            "label": label == "True",
            "group": group,
        }
    path = put_lines(folder / "train.json", items)
    argv = ["nlvr2", path, "--images", folder]
    lost = folder / "images/train/8/train-4100-1-img1.png"
    return Sample(argv, rows, lost, ["train-4100-1-1"], "train.json:2")


def snli_ve(folder: Path) -> Sample:
    items, rows = [], {}
    for n, (image_id, label) in enumerate([("4705552913", "neutral"), ("2407214681", "contradiction")] * 2):
        image = put(folder / f"flickr30k-images/{image_id}.jpg", photo(int(image_id)))
        pair = f"{image_id}.jpg#{n}r1{label[0]}"
        sentence = f"The sisters {n} are hugging goodbye."
        items.append(
            {"annotator_labels": [label], "captionID": f"{image_id}.jpg#{n}", "gold_label": label, "pairID": pair}
            | {"sentence1": "Two women are embracing.", "sentence1_binary_parse": "( ( Two women ) . )"}
            | {"sentence2": sentence, "Flickr30K_ID": image_id}
        )
        rows[pair] = {"image": image, "sentence": sentence, "label": label, "source": "snli-ve"}
    path = put_lines(folder / "snli_ve_train.jsonl", items)
    lost = folder / "flickr30k-images/4705552913.jpg"
    argv = ["entailment", path, "--images", lost.parent]
    return Sample(argv, rows, lost, list(rows)[::2], "snli_ve_train.jsonl:1")


TEXTS = ("url", "caption", "key", "status", "error_message")
SIZES = ("width", "height", "original_width", "original_height")
STATUS_COLUMNS = pa.schema(
    [(name, pa.int32() if name in SIZES else pa.string()) for name in (*TEXTS, *SIZES, "exif", "sha256")]
)


def status_row(key: str, error: str | None = None) -> dict[str, Any]:
    """A row of img2dataset's parquet; sizes and hash only where the download succeeded."""
    number = int(key)
    row = dict.fromkeys(STATUS_COLUMNS.names)
    row |= {"url": f"https://cdn.example.org/{key}.jpg", "caption": f"a photo of {number}", "key": key}
    if error:
        return row | {"status": "failed_to_download", "error_message": error}
    size = {"width": 24, "height": 18, "original_width": 24, "original_height": 18}
    return row | size | {"status": "success", "exif": "{}", "sha256": hashlib.sha256(photo(number)).hexdigest()}


def write_status(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, STATUS_COLUMNS), path)


def write_img2dataset_tar(path: Path, rows: list[dict[str, Any]]) -> None:
    """A tar of the rows that succeeded, each as image, text and JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for row in rows:
            if row["status"] == "success":
                image = photo(int(row["key"]))
                for suffix, data in (
                    ("jpg", image),
                    ("json", json.dumps(row).encode()),
                    ("txt", row["caption"].encode()),
                ):
                    add_file(tar, f"{row['key']}.{suffix}", data)


def img2dataset_rows() -> list[dict[str, Any]]:
    errors = {"000000001": "HTTP Error 404: Not Found", "000000003": "<urlopen error [Errno -2] Name not known>"}
    return [status_row(f"{n:09d}", errors.get(f"{n:09d}")) for n in range(6)]


def img2dataset_expected(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    good = [row for row in rows if row["status"] == "success"]
    return {
        row["key"]: {"image": photo(int(row["key"])), "captions": [row["caption"]], "source": "cc3m"} for row in good
    }


def img2dataset_webdataset(folder: Path) -> Sample:
    rows = img2dataset_rows()
    for shard, part in (("00000", rows[:4]), ("00001", rows[4:])):
        write_status(folder / f"cc3m/{shard}.parquet", part)
        write_img2dataset_tar(folder / f"cc3m/{shard}.tar", part)
        put_json(folder / f"cc3m/{shard}_stats.json", {"count": len(part), "status_dict": {"success": 2}})
    return Sample(["img2dataset", folder / "cc3m"], img2dataset_expected(rows))


def img2dataset_files(folder: Path) -> Sample:
    rows = img2dataset_rows()
    write_status(folder / "cc3m/00000.parquet", rows)
    for row in rows:
        if row["status"] == "success":
            put(folder / f"cc3m/00000/{row['key']}.jpg", photo(int(row["key"])))
            put(folder / f"cc3m/00000/{row['key']}.txt", row["caption"].encode())
    lost = folder / "cc3m/00000/000000002.jpg"
    argv = ["img2dataset", folder / "cc3m"]
    return Sample(argv, img2dataset_expected(rows), lost, ["000000002"], "00000:000000002")


def img2dataset_parquet(folder: Path) -> Sample:
    rows = img2dataset_rows()
    images = [photo(int(row["key"])) if row["status"] == "success" else None for row in rows]
    table = pa.Table.from_pylist(rows, STATUS_COLUMNS).append_column("jpg", pa.array(images, pa.binary()))
    (folder / "cc3m").mkdir(parents=True)
    pq.write_table(table, folder / "cc3m/00000.parquet")
    return Sample(["img2dataset", folder / "cc3m"], img2dataset_expected(rows))


IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hf_table(numbers: list[int], captions: pa.DataType) -> pa.Table:
    """With the features in the schema's metadata, as `datasets` writes them."""
    one = [f"a photo of {n}" for n in numbers]
    table = pa.table(
        {
            "image": pa.array([{"bytes": photo(n), "path": f"{n}.jpg"} for n in numbers], IMAGE_STRUCT),
            "caption": pa.array([[c, f"{c} again"] for c in one] if pa.types.is_list(captions) else one, captions),
            "sha": pa.array([f"sha{n}" for n in numbers]),
        }
    )
    features = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_saved(folder: Path, tables: list[pa.Table]) -> None:
    """`Dataset.save_to_disk`: Arrow streams, state.json and dataset_info.json."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(tables):05d}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "d3a", "_format_columns": None}
    put_json(folder / "state.json", state | {"_format_kwargs": {}, "_format_type": None, "_split": folder.name})
    put_json(folder / "dataset_info.json", {"citation": "", "description": "", "features": {}})


def hf_saved(folder: Path) -> Sample:
    write_saved(folder / "set", [hf_table([0, 1, 2], pa.string()), hf_table([3], pa.string())])
    keys = [f"data-00000-of-00002-{n:08d}" for n in range(3)] + ["data-00001-of-00002-00000000"]
    rows = {key: {"image": photo(n), "captions": [f"a photo of {n}"], "source": "set"} for n, key in enumerate(keys)}
    return Sample(["hf", folder / "set"], rows)


def hf_dict(folder: Path) -> Sample:
    write_saved(folder / "set/train", [hf_table([0, 1], pa.list_(pa.string()))])
    write_saved(folder / "set/test", [hf_table([2], pa.list_(pa.string()))])
    put_json(folder / "set/dataset_dict.json", {"splits": ["train", "test"]})
    rows = {f"sha{n}": {"image": photo(n), "captions": [f"a photo of {n}", f"a photo of {n} again"]} for n in range(2)}
    return Sample(["hf", folder / "set", "--subset", "train", "--key-column", "sha"], rows)


def hf_parquet(folder: Path) -> Sample:
    (folder / "data").mkdir(parents=True)
    for split, numbers in (("train", [0, 1, 2]), ("test", [3])):
        pq.write_table(hf_table(numbers, pa.string()), folder / f"data/{split}-00000-of-00001.parquet")
    keys = ["test-00000-of-00001-00000000", *(f"train-00000-of-00001-{n:08d}" for n in range(3))]
    rows = {
        key: {"image": photo(n), "captions": [f"a photo of {n}"]} for key, n in zip(keys, (3, 0, 1, 2), strict=True)
    }
    return Sample(["hf", folder, "--image-column", "image"], rows)


def csv_table(folder: Path) -> Sample:
    """Rows as spreadsheets write them: with a byte-order mark, quotes, a caption of two lines, and an image twice."""
    names = [f"photos/{number} a.jpg" for number in range(3)]
    images = [put(folder / name, photo(number)) for number, name in enumerate(names)]
    lines = [
        "id,filepath,title,similarity",
        f'1,{names[0]},"a bus, red",0.31',
        f"1,{names[0]},a vehicle,0.28",
        f'2,{names[1]},"a ""fast"" train\nin snow",0.4',
        f"3,{names[2]},ein Zug nach Köln",
    ]
    path = folder / "pairs.csv"
    put(path, b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    captions = [["a bus, red", "a vehicle"], ['a "fast" train in snow'], ["ein Zug nach Köln"]]
    rows = {
        str(number + 1): {"image": image, "captions": said, "source": "pairs"}
        for number, (image, said) in enumerate(zip(images, captions, strict=True))
    }
    return Sample(["table", path, "--key-column", "id"], rows, folder / names[1], ["2"], "pairs.csv:2")


def tsv_table(folder: Path) -> Sample:
    """open_clip's default: a TSV of `filepath` and `title`."""
    images = {name: put(folder / "images" / name, photo(number)) for number, name in enumerate(["b.jpg", "a.png"])}
    put(folder / "train.tsv", b"filepath\ttitle\nb.jpg\ta bee\na.png\tan ant\n")
    said = {"b.jpg": "a bee", "a.png": "an ant"}
    rows = {name: {"image": image, "captions": [said[name]], "source": "train"} for name, image in images.items()}
    argv = ["table", folder / "train.tsv", "--images", folder / "images"]
    return Sample(argv, rows, folder / "images/a.png", ["a.png"], "train.tsv:2")


def json_list(folder: Path) -> Sample:
    """Annotations of ALBEF, BLIP and LAVIS: one caption per row or several, and absolute paths from the machine that
    wrote them."""
    images = {name: put(folder / "images" / name, photo(number)) for number, name in enumerate(["a.jpg", "b/c.jpg"])}
    put_json(
        folder / "coco_train.json",
        [
            {"caption": "a bee", "image": "a.jpg", "image_id": "coco_1"},
            {"caption": "an insect", "image": "a.jpg", "image_id": "coco_1"},
            {"caption": ["an ant", "it runs"], "image": str(folder / "images/b/c.jpg"), "image_id": "coco_2"},
        ],
    )
    said = {"a.jpg": ["a bee", "an insect"], "b/c.jpg": ["an ant", "it runs"]}
    rows = {name: {"image": image, "captions": said[name], "source": "coco_train"} for name, image in images.items()}
    argv = ["table", folder / "coco_train.json", "--images", folder / "images"]
    return Sample(argv, rows, folder / "images/b/c.jpg", ["b/c.jpg"], "coco_train.json:2")


def json_lines(folder: Path) -> Sample:
    """The metadata.jsonl of a Hugging Face image folder; not every row has every column."""
    images = {name: put(folder / name, photo(number)) for number, name in enumerate(["0.jpg", "1.jpg", "2.jpg"])}
    lines = [
        {"file_name": name, "text": f"photo {name}"} | ({"tag": [name]} if name == "1.jpg" else {}) for name in images
    ]
    put(folder / "metadata.jsonl", "\r\n".join(map(json.dumps, lines)).encode())
    rows = {
        name: {"image": image, "captions": [f"photo {name}"], "source": "metadata"} for name, image in images.items()
    }
    return Sample(["table", folder / "metadata.jsonl"], rows, folder / "1.jpg", ["1.jpg"], "metadata.jsonl:2")


def side_by_side(folder: Path) -> Sample:
    """As the trainers of kohya and others expect it."""
    keys = ["cats/1", "cats/2", "dogs/1"]
    images = {key: put(folder / f"pets/{key}.jpg", photo(number)) for number, key in enumerate(keys)}
    for key in keys:
        put(folder / f"pets/{key}.txt", f"a picture of {key}\r\n\r\na pet\n".encode())
    put(folder / "pets/notes.md", b"no picture")
    rows = {
        key: {"image": image, "captions": [f"a picture of {key}", "a pet"], "source": "pets"}
        for key, image in images.items()
    }
    return Sample(["side_by_side", folder / "pets"], rows, folder / "pets/cats/2.jpg", ["cats/2"], "pets/cats/2")


def md5_name(n: int, url: str) -> str:
    return hashlib.md5(url.encode()).hexdigest() + ".png"


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "coco": coco,
    "karpathy-coco": karpathy_coco,
    "karpathy-flickr30k": karpathy_flickr,
    "cc-row0": cc("row0", lambda n, url: f"{n:07d}.jpg"),
    "cc-row1": cc("row1", lambda n, url: f"{n + 1}.jpeg"),
    "cc-md5": cc("md5", md5_name),
    "cc-crc32": cc("crc32", lambda n, url: f"{n}_{zlib.crc32(url.encode())}"),
    "cc-crc32-alone": cc("crc32", lambda n, url: f"{zlib.crc32(url.encode())}"),
    "cc-mapped": cc_mapped,
    "cc12m": cc12m,
    "sbu": sbu,
    "vg": vg,
    "vqa": vqa,
    "vqa-test": vqa_test,
    "vg_qa": vg_qa,
    "nlvr2": nlvr2,
    "entailment": snli_ve,
    "img2dataset-webdataset": img2dataset_webdataset,
    "img2dataset-files": img2dataset_files,
    "img2dataset-parquet": img2dataset_parquet,
    "table-csv": csv_table,
    "table-tsv": tsv_table,
    "table-json-list": json_list,
    "table-json-lines": json_lines,
    "side-by-side": side_by_side,
    "hf-saved": hf_saved,
    "hf-dict": hf_dict,
    "hf-parquet": hf_parquet,
}
"""By name. The sources "folder" and "webdataset" have tests of their own."""
