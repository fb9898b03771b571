"""The forms of captioned pictures that `mvlm.train` shards, and its errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mvlm
from data_tools.__main__ import main
from mvlm.api.corpus import find_shards, prepare, shard_words
from mvlm.api.results import RECIPE
from mvlm.data.shards.forms import recognise
from mvlm.errors import UserError
from tests.pictures import encoded

CAPTIONS = {f"{number:02d}.jpg": f"a picture, number {number}" for number in range(90)}


def photograph(name: str) -> bytes:
    noise = np.random.default_rng(int(name[:2])).integers(0, 256, (20, 20, 3), np.uint8)
    return encoded(Image.fromarray(noise))


def pictures(folder: Path) -> None:
    (folder / "images").mkdir()
    for name in CAPTIONS:
        (folder / "images" / name).write_bytes(photograph(name))


def side_by_side(folder: Path) -> Path:
    pictures(folder)
    for name, caption in CAPTIONS.items():
        (folder / "images" / name).with_suffix(".txt").write_text(caption)
    return folder / "images"


def table(name: str, separator: str, path: Callable[[Path, str], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pictures(folder)
        with (folder / name).open("w", newline="") as file:
            rows = csv.writer(file, delimiter=separator)
            rows.writerow(["filepath", "title"])
            rows.writerows([path(folder, image), caption] for image, caption in CAPTIONS.items())
        return folder / name

    return write


def parquet(column: str, value: Callable[[str], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pictures(folder)
        columns = {column: [value(name) for name in CAPTIONS], "caption": list(CAPTIONS.values())}
        pq.write_table(pa.table(columns), folder / "pairs.parquet")
        return folder / "pairs.parquet"

    return write


def json_rows(name: str, joined: Callable[[list[str]], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pictures(folder)
        rows = [json.dumps({"file_name": f"images/{image}", "text": said}) for image, said in CAPTIONS.items()]
        (folder / name).write_text(joined(rows))
        return folder if name.startswith("metadata") else folder / name

    return write


def metadata_csv(folder: Path) -> Path:
    return table("metadata.csv", ",", lambda folder, name: f"images/{name}")(folder).parent


def flickr8k(folder: Path) -> Path:
    """As on Kaggle: paths relative to a folder beside the table, which has the name of a text file."""
    table("captions.txt", ",", lambda folder, name: name)(folder)
    (folder / "captions.txt").write_text(
        (folder / "captions.txt").read_text().replace("filepath,title", "image,caption")
    )
    (folder / "readme.txt").write_text("Thousands of images, each with several captions.")
    return folder


def flickr30k(folder: Path) -> Path:
    pictures(folder)
    rows = "".join(f"{name}| 0| {said}\n" for name, said in CAPTIONS.items())
    (folder / "results.csv").write_text(f"image_name| comment_number| comment\n{rows}")
    return folder / "results.csv"


FORMS = {
    "jpg and txt side by side": (side_by_side, "side_by_side", False),
    "csv": (table("pairs.csv", ",", lambda folder, name: f"images/{name}"), "table", False),
    "csv of absolute paths": (
        table("pairs.csv", ",", lambda folder, name: str(folder / "images" / name)),
        "table",
        False,
    ),
    "tsv": (table("pairs.tsv", "\t", lambda folder, name: f"images/{name}"), "table", False),
    "json lines": (json_rows("pairs.jsonl", "\n".join), "table", False),
    "json list": (json_rows("pairs.json", lambda rows: f"[{', '.join(rows)}]"), "table", False),
    "folder with metadata.jsonl": (json_rows("metadata.jsonl", "\n".join), "table", False),
    "folder with metadata.csv": (metadata_csv, "table", False),
    "csv from Windows": (table("pairs.csv", ",", lambda folder, name: f"images\\{name}"), "table", False),
    "captions.txt of Flickr8k": (flickr8k, "table", False),
    "results.csv of Flickr30k": (flickr30k, "table", False),
    "parquet of datasets": (parquet("image", lambda name: {"bytes": photograph(name), "path": name}), "hf", True),
    "parquet with bytes": (parquet("jpg", photograph), "hf", True),
    "parquet with paths": (parquet("filepath", lambda name: f"images/{name}"), "hf", False),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_recognised_and_sharded(tmp_path: Path, name: str) -> None:
    write, source, stays = FORMS[name]
    form = recognise(write(tmp_path))
    assert form and (form.source, form.stays) == (source, stays)
    assert main([*shard_words(form, tmp_path / "shards"), "--workers", "1"]) == 0
    found = find_shards(tmp_path / "shards")
    assert found and len(found.train) == len(found.eval) == 1
    rows = mvlm.open([*found.train, *found.eval])
    assert sorted(row.captions[0] for row in rows) == sorted(CAPTIONS.values())
    assert {row.captions[0]: row.encoded for row in rows} == {CAPTIONS[name]: photograph(name) for name in CAPTIONS}


def test_the_error_for_a_path_that_is_not_a_corpus_says_what_to_give(tmp_path: Path) -> None:
    def said(place: Path) -> str:
        with pytest.raises(UserError) as raised:
            prepare(place, tmp_path / "run/shards")
        return str(raised.value)

    for part in ("test", "train"):
        (tmp_path / "set" / part).mkdir(parents=True)
        metadata_csv(tmp_path / "set" / part)
    (tmp_path / "set/words.zip").write_bytes(b"PK")
    both = f"is not a corpus, but contains {tmp_path}/set/test and {tmp_path}/set/train: give one of them"
    assert both in said(tmp_path / "set")
    (tmp_path / "fotos/dcim").mkdir(parents=True)
    (tmp_path / "fotos/fotos.csv").write_text("Datei;Beschreibung\ndcim/1.jpg;ein Bus\n")
    assert f"is not a corpus, but contains {tmp_path}/fotos/fotos.csv: give that." in said(tmp_path / "fotos")
    no_column = said(tmp_path / "fotos/fotos.csv")
    assert "has the columns Datei, Beschreibung (its first line): say which with --image-column, or, if" in no_column
    again = f"run `mvlm-data shard table {tmp_path}/fotos/fotos.csv --split train=0.9,eval=0.1 --out"
    assert f"To give it options or another source, {again}" in no_column
    assert "unpack it, and give the folder" in said(tmp_path / "set/words.zip")
    assert "not recognised as a corpus: give a folder with captions.jsonl" in said(tmp_path / "set/train/images")


def test_a_shipped_example_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"/examples/scenes\.toml is not recognised as a corpus"):
        prepare("examples/scenes.toml", tmp_path / "run/shards")


@pytest.mark.parametrize(
    ("name", "text", "is_one"),
    [
        ("a.csv", "caption;file_name\na dog;1.jpg\n", True),
        ("a.csv", "step,loss\n1,2\n", False),
        ("a.txt", "images, texts and files that we like\n", False),
        ("a.json", '[\n {\n  "path": "1.jpg",\n  "sentences": ["a dog"]\n }\n]', True),
        ("a.json", '[{"path": "1.jpg"}]', False),
        ("metrics.jsonl", '{"step": 1, "image": 0.3, "text": 2.1}\n', False),
        ("a.jsonl", "no JSON", False),
    ],
)
def test_a_table_in_a_folder_is_recognised_by_its_columns(tmp_path: Path, name: str, text: str, is_one: bool) -> None:
    (tmp_path / name).write_text(text)
    form = recognise(tmp_path)
    assert (form.paths if form else ()) == ((tmp_path / name,) if is_one else ())


def test_texts_beside_pictures_take_precedence_over_a_table(tmp_path: Path) -> None:
    metadata_csv(tmp_path)
    (tmp_path / "LICENCE.txt").write_text("Take it.")
    form = recognise(tmp_path)
    assert form and form.source == "table"
    (tmp_path / "images/00.txt").write_text("a picture")
    form = recognise(tmp_path)
    assert form and form.source == "side_by_side"


def test_shards_of_another_corpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = table("pairs.csv", ",", lambda folder, name: f"images/{name}")(tmp_path)
    monkeypatch.chdir(tmp_path)
    shards = prepare("pairs.csv", Path("run/shards"))
    for again in ("pairs.csv", pairs, "run/../pairs.csv"):
        assert prepare(again, Path("run/shards")) == shards
    other = pairs.with_name("other.csv")
    for name in ("other.csv", other):  # missing at first, and then there
        with pytest.raises(UserError, match=r"run/shards was made from pairs.csv, not from .*other.csv"):
            prepare(name, Path("run/shards"))
        other.write_text(pairs.read_text())
    pairs.unlink()  # the shards no longer need it
    assert prepare("pairs.csv", Path("run/shards")) == shards
    (tmp_path / "run/below").mkdir()
    monkeypatch.chdir(tmp_path / "run/below")
    assert prepare(pairs, tmp_path / "run/shards").images == shards.images


def test_a_run_cannot_switch_to_other_shards(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECIPE).write_text(f"[data]\ntrain = ['{scenes}/train']\n")
    with pytest.raises(UserError, match=r"run trains on .*/train and not on .*/eval: give another `out`"):
        mvlm.train(scenes / "eval", tmp_path / "run")


def test_nothing_is_held_out_of_very_few_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = list(CAPTIONS)[:3]
    for name in names:
        (tmp_path / name).write_bytes(photograph(name))
    rows = "".join(f'{name},"{CAPTIONS[name]}"\n' for name in names)
    (tmp_path / "pairs.csv").write_text(f"image,text\n{rows}")
    found = prepare(tmp_path / "pairs.csv", tmp_path / "run/shards")
    assert (found.images, found.eval) == (3, ())
    assert "Too few pictures to hold out a tenth" in capfd.readouterr().out
    assert prepare(tmp_path / "pairs.csv", tmp_path / "run/shards") == found
