"""The report of a real run: self-contained, escaped, and true to the run folder."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.report.compare import corpora, differences
from mvlm.report.facts import read_facts
from mvlm.report.page import about
from tests.conftest import ROOT
from tests.report.conftest import HOSTILE, name_data

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Tags with attributes, and the text outside styles; asserts that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def count(self, name):
        return sum(tag == name for tag, _ in self.tags)


def report(*words):
    assert main(["report", *map(str, words)]) == 0


def read(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return text, page


@pytest.fixture(scope="module")
def whole(page):
    return read(page)


def test_the_page_loads_nothing_from_elsewhere(whole):
    text, page = whole
    assert "http" not in text
    assert "@import" not in text
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                assert value.startswith(("data:image/", "#")), (tag, name, value)
            for url in re.findall(r"url\(([^)]*)\)", value or ""):
                assert url.startswith("#"), (tag, name, value)


def test_captions_and_names_are_shown_as_text(whole):
    text, page = whole
    assert "<script" not in text
    assert HOSTILE in page.text
    assert "a<b>run" in page.text


def test_all_pictures_are_there_and_can_be_decoded(whole):
    _, page = whole
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6 * 4 + 6 + 6 + 6 * 5
    for source in images:
        kind, data = re.fullmatch(r"data:image/(png|webp);base64,(.+)", source).groups()
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.format.lower() == kind
        assert np.asarray(picture).shape == (32, 32, 3)


def test_curves_numbers_and_facts_are_shown(whole, trained):
    _, page = whole
    labels = {attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"}
    assert {"Loss, total", "Masked text", "Masked image", "ITC", "ITM", "Gradient norm", "Pairs per second"} <= labels
    described = json.loads((trained / "run.json").read_text())
    for fact in ("3 of 3", described["versions"]["torch"], f"{described['parameters'] / 1e6:.1f} M", "chance"):
        assert fact in page.text
    assert "8 images and 12 captions, all of them candidates of every query" in page.text
    assert "Pixels: 60% of each of 8 images is masked" in page.text


def test_a_run_without_latest_is_measured_at_its_newest_whole_checkpoint(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoints/latest").unlink()
    assert main(["report", str(run)]) == 0
    assert "has saved no checkpoint" not in (run / "report.html").read_text()


def test_numbers_that_were_written_are_not_measured_again(run):
    recall = {"r1": 0.123, "r5": 0.456, "r10": 0.789}
    known = {name: {"itc": recall, "reranked": None} for name in ("image_to_text", "text_to_image")}
    known |= {"chance": recall, "protocol": "As <we> counted.", "step": 77}
    (run / "retrieval.json").write_text(json.dumps(known))
    report(run)
    _, page = read(run / "report.html")
    for shown in ("12.3", "45.6", "78.9", "As <we> counted. Model at step 77."):
        assert shown in page.text
    assert "ITM" not in page.text.split("Finding the other half")[1].split("As <we>")[0]


def test_a_run_without_evaluation_data_still_has_curves(bare_run, tmp_path):
    out = tmp_path / "new" / "page.html"
    report(bare_run, "--out", out)
    _, page = read(out)
    assert page.count("svg") >= 8
    assert page.count("img") == 0
    assert "names no evaluation data" in page.text


def test_the_page_says_that_the_evaluation_data_is_gone(run):
    name_data(run, "eval", "gone/<shards>")
    report(run)
    _, page = read(run / "report.html")
    assert "cannot be opened: No shards at gone/<shards>" in page.text
    assert page.count("svg") >= 8


def test_a_run_not_trained_to_reconstruct_shows_no_reconstructions(run):
    checkpoint = next((run / "checkpoints").glob("step_*"))
    index = json.loads((checkpoint / "index.json").read_text())
    entry = next(entry for entry in index["files"] if entry["file"] == "config.toml")
    config = re.sub(r"(?m)^(image|text) = 1\.0$", r"\1 = 0.0", (checkpoint / "config.toml").read_text()).encode()
    (checkpoint / "config.toml").write_bytes(config)
    entry.update(bytes=len(config), sha256=hashlib.sha256(config).hexdigest())
    (checkpoint / "index.json").write_text(json.dumps(index))
    report(run)
    _, page = read(run / "report.html")
    assert "It was not trained to reconstruct anything (objectives.image and objectives.text are 0)." in page.text
    assert "Finding the other half" in page.text and "Reconstructing" not in page.text


def test_two_runs_are_shown_side_by_side(bare_run, trained, tmp_path):
    report(bare_run, trained, "--out", tmp_path / "both.html")
    text, page = read(tmp_path / "both.html")
    assert "var(--line-0)" in text
    assert "var(--line-1)" in text
    assert str(bare_run) in page.text, "runs of the same name are shown with their folders"


def test_only_what_differs_between_runs_is_listed(brief_run, tmp_path):
    other = shutil.copytree(brief_run, tmp_path / "other")
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("image_mask_ratio = 0.6", "image_mask_ratio = 0.5"))
    described = json.loads((other / "run.json").read_text())
    described["versions"]["torch"] = "9.9"
    (other / "run.json").write_text(json.dumps(described | {"zero_stage": 3}))
    first, second = read_facts(brief_run), read_facts(other)
    torch = first.described["versions"]["torch"]
    wanted = [("objectives.image_mask_ratio", ["0.6", "0.5"]), ("zero stage", ["1", "3"]), ("torch", [torch, "9.9"])]
    assert differences([first, second]) == wanted
    report(brief_run, other, "--out", tmp_path / "both.html")
    assert "What differs" in read(tmp_path / "both.html")[1].text
    report(brief_run, "--out", tmp_path / "one.html")
    assert "What differs" not in read(tmp_path / "one.html")[1].text


def test_the_page_says_what_sharding_dropped(brief_run, add_metrics, tmp_path):
    """From a folder with a broken and a missing picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    (folder / "1.png").write_bytes(b"no picture")
    lines = [{"id": str(n), "image": f"{n}.png", "captions": [HOSTILE]} for n in range(3)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert data_tools(["shard", "folder", str(folder), "--out", str(tmp_path / "shards")]) == 0
    name_data(brief_run, "train", tmp_path / "shards")
    add_metrics(brief_run, {"step": 4, "bad_images": 2})
    counted = json.loads((tmp_path / "shards" / "yield.json").read_text())
    assert (counted["read"], counted["kept"], len(counted["dropped"])) == (3, 1, 2)
    (corpus,) = corpora(read_facts(brief_run))
    assert (corpus.read, corpus.kept, corpus.captions) == (3, 1, 1)
    report(brief_run, "--out", tmp_path / "page.html")
    _, page = read(tmp_path / "page.html")
    dropped = ", ".join(f"1 {reason}" for reason in sorted(counted["dropped"]))
    assert f"{dropped}2" in page.text  # the next cell has the images that were bad in training


def test_a_run_that_read_a_tar_can_be_reported(brief_run, tmp_path):
    (tmp_path / "pictures.tar").touch()
    name_data(brief_run, "train", tmp_path / "pictures.tar")
    report(brief_run, "--out", tmp_path / "page.html")
    assert "What became of the data" not in read(tmp_path / "page.html")[1].text


def test_a_repeated_step_counts_once_and_a_cut_last_line_is_ignored(bare_run, add_metrics):
    nan = {"step": 4, "loss": float("nan"), "grad_norm": None}
    add_metrics(bare_run, {"step": 3, "loss": 42.0}, nan, {"step": 5, "loss": 1.5}, '{"step": 6, "lo')
    facts = read_facts(bare_run)
    steps, losses = facts.curve("loss")
    assert steps == [1, 2, 3, 4, 5]
    assert losses[2] == 42.0
    assert np.isnan(losses[3])
    assert 4 not in facts.curve("grad_norm")[0]
    assert facts.last_step == 5
    report(bare_run)
    read(bare_run / "report.html")


def mistake(capsys, *words):
    assert main(["report", *map(str, words)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message


def test_mistakes_are_one_sentence(bare_run, add_metrics, tmp_path, capsys):
    assert "No run at" in mistake(capsys, tmp_path / "nothing")
    (bare_run / "retrieval.json").write_text("{")
    assert "retrieval.json cannot be read as JSON" in mistake(capsys, bare_run)
    (bare_run / "retrieval.json").unlink()
    (tmp_path / "file").write_text("")
    assert "give --out another place" in mistake(capsys, bare_run, "--out", tmp_path / "file" / "page.html")
    add_metrics(bare_run, "not json\n", {"step": 9, "loss": 1.0})
    assert re.search(r"metrics\.jsonl, line \d+, is not a metrics line", mistake(capsys, bare_run))
    assert not (bare_run / "report.html").exists()


def test_a_checkpoint_can_be_neither_reported_nor_watched(capsys):
    checkpoint = find_checkpoint(ROOT / "tests/training/kept_runs/zero0")
    assert f"{checkpoint} is a checkpoint, which has no log: give the folder of its run" in mistake(capsys, checkpoint)
    assert main(["watch", str(checkpoint), "--once"]) == 1
    assert "which has no log: give the folder of its run" in capsys.readouterr().err


def test_steps_that_were_rolled_back_are_left_out(bare_run, add_metrics):
    known, gone = read_facts(bare_run).last_step, ({"step": 8, "loss": 9.0}, {"step": 8, "eval/mean_recall": 0.9})
    add_metrics(bare_run, *gone, {"step": 6, "loss": 1.5}, {"step": 7, "loss": 1.4})
    facts = read_facts(bare_run)
    assert list(facts.metrics)[-3:] == [known, 6, 7] and facts.last_step == 7


def test_pairs_are_counted_by_the_batch_size_of_their_time(bare_run):
    """A run that will resume with a larger batch has not seen more pairs so far."""
    before = read_facts(bare_run)
    seen, batch = before.last_step * before.global_batch, before.global_batch
    config = (bare_run / "config.toml").read_text()
    (bare_run / "config.toml").write_text(config.replace(f"global_batch = {batch}", f"global_batch = {2 * batch}"))
    assert f"of {2 * batch} pairs; {seen} pairs seen" in dict(about(read_facts(bare_run)))["Steps"]
