"""Answers to questions and verdicts on statements, against the model called once for each, without its shortcuts."""

import json
from dataclasses import replace

import pytest
import torch

from mvlm.__main__ import main
from mvlm.config.schema import Task
from mvlm.data.samples.labelled import ANSWERS
from mvlm.data.samples.pictures import Pictures
from mvlm.errors import UserError
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.predict.choose import ANSWER, JUDGE
from mvlm.predict.prediction import Asked
from mvlm.pretrained.encoders import build_model
from mvlm.pretrained.runs import Loaded
from tests.evaluate.tiny import CONFIG, make_tokenizer
from tests.export.conftest import write_run

GIVEN = ("red", "blue", "2", "no")
SEARCH = SearchSettings(batch=3, rerank=4, memory_gb=1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """tuned(task, classes) -> a fine-tuned run with random weights."""

    def made(task, classes):
        folder = tmp_path_factory.mktemp(task)
        make_tokenizer().save_pretrained(folder)
        (folder / ANSWERS).write_text(json.dumps(list(GIVEN)))
        torch.manual_seed(1)
        blueprint = replace(CONFIG.blueprint, task=Task(name=task))
        model = build_model(blueprint, make_tokenizer(), classes).eval()
        return Loaded(model, folder, blueprint, CONFIG.data, CONFIG.eval, step=3)

    return made


@torch.no_grad()
def logits(model, files, sentence):
    """The logits of one sample from the full outputs of the cross encoders, each image encoded by itself."""
    pictures = Pictures(files, [sentence], make_tokenizer(), CONFIG.data.text_length, CONFIG.model.image_size)
    text, valid = pictures.texts([0])
    words, features = model.encode_text(text, valid), []
    for row in range(len(files)):
        image = model.encode_image(pictures.images([row]))
        seen = model.cross_image(image, words, context_valid_BU=valid)
        read = model.cross_text(words, image, valid_BL=valid)
        features += [seen[0, 0], read[0, 0]]
    return model.head(torch.cat(features))


def test_each_answer_has_an_independent_probability(tuned, files):
    loaded, question = tuned("vqa", len(GIVEN)), "what colour is the dog"
    answer = ANSWER.run(loaded, Asked(files, (question,), 3, SEARCH, draws=False), CPU)
    assert [entry["images"] for entry in answer.entries] == [[str(path)] for path in files]
    for path, entry in zip(files, answer.entries, strict=True):
        share = logits(loaded.model, [path], question).sigmoid()
        best = share.argsort(descending=True)[:3].tolist()
        assert [each["answer"] for each in entry["answers"]] == [GIVEN[place] for place in best]
        assert [each["probability"] for each in entry["answers"]] == pytest.approx(share[best].tolist(), abs=1e-6)
    assert f"{share[best[0]]:6.1%}  {GIVEN[best[0]]}" in answer.text


def test_a_statement_of_two_images_depends_on_their_order(tuned, files):
    loaded, said = tuned("nlvr2", 2), "the left image has a red dog"
    given = []
    for pair in (files[:2], files[1::-1]):
        answer = JUDGE.run(loaded, Asked(tuple(pair), (said,), 2, SEARCH, draws=True), CPU)
        assert len(answer.pictures) == 2
        shares = {each["answer"]: each["probability"] for each in answer.entries[0]["answers"]}
        expected = logits(loaded.model, pair, said).softmax(-1).tolist()
        assert [shares["False"], shares["True"]] == pytest.approx(expected, abs=1e-6)
        given.append(shares["True"])
    assert given[0] != pytest.approx(given[1], abs=1e-4)


def test_a_statement_of_two_images_needs_two(tuned, files):
    with pytest.raises(UserError, match=r"3 images for 1 sentence: give two for each"):
        JUDGE.run(tuned("nlvr2", 2), Asked(files[:3], ("a red dog",), 2, SEARCH, draws=False), CPU)


@pytest.mark.parametrize(
    ("task", "asked", "right"),
    [("vqa", "judge", "answer"), ("entailment", "answer", "judge"), ("nlvr2", "captions", "judge")],
)
def test_for_a_fine_tuned_run_the_right_command_is_suggested(tmp_path, files, capsys, task, asked, right):
    run = write_run(tmp_path / "run", replace(CONFIG, task=Task(name=task)))
    words = ["--checkpoint", str(run), "--images", str(files[0]), "--sentences", "a red dog"]
    assert main(["predict", asked, *words]) == 1
    assert f"was fine-tuned for {task}: ask it by `mvlm predict {right}`" in capsys.readouterr().err
