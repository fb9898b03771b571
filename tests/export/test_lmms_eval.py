"""lmms-eval's command with an exported model gives the results of the model's scores.

lmms-eval needs some fifty packages, so these tests run only if it happens to be installed.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from mvlm.export.auto import register
from tests.conftest import ROOT
from tests.export.conftest import GIVEN, export

pytest.importorskip("lmms_eval.models", reason="lmms-eval is not installed: pip install lmms-eval")

CHOICES = ["red dog", "blue circle", "green star", "a cat"]
QUESTION = "what is seen"

UTILS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""

YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: {output_type}
doc_to_visual: !function utils.visual
doc_to_text: "{question}\\nAnswer with the option's letter."
doc_to_choice: {choices}
doc_to_target: answer
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0.0
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    drawn = np.random.default_rng(0)
    lines = []
    for number in range(12):
        file = folder / f"{number}.png"
        Image.fromarray(drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
        lines.append(json.dumps({"image": str(file), "answer": CHOICES[number % len(CHOICES)]}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def answering(made_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(made_run("vqa"), tmp_path_factory)


def entry_points() -> str:
    """The entry points that setup.py declares for lmms-eval, in the format of an installation."""
    group = "lmms_eval.models"
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == group:
                    return "\n".join([f"[{group}]", *ast.literal_eval(value)]) + "\n"
    raise AssertionError(f"setup.py has no entry points {group}")


def run_lmms_eval(model: Path, rows: Path, where: Path, by: str, kind: str, metric: str, question: str) -> float:
    """Run lmms-eval on a task; the metric that it reports."""
    installed = where / "site/mvlm_declared-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mvlm-declared\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(entry_points())
    task = where / "task"
    task.mkdir()
    (task / "utils.py").write_text(UTILS)
    choices = json.dumps(CHOICES) if kind == "multiple_choice" else "null"
    filled = YAML.format(name="seen", rows=rows, output_type=kind, question=question, choices=choices, metric=metric)
    (task / "seen.yaml").write_text(filled)
    args = f"pretrained={model}" + (f",by={by}" if by else "")
    words = ["--model", "mvlm", "--model_args", args, "--tasks", "seen", "--include_path", str(task), "--device", "cpu"]
    path = os.pathsep.join([str(where / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(where / "home")}
    ended = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *words, "--batch_size", "5", "--output_path", str(where / "out")],
        cwd=where,
        env=os.environ | offline | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    files = list((where / "out").rglob("*_results.json"))
    assert len(files) == 1, ended.stdout + ended.stderr  # it exits with 0 even after a failure
    found: dict[str, Any] = json.loads(files[0].read_text())["results"]["seen"]
    return float(found[f"{metric},none"])


def loaded(folder: Path) -> tuple[Any, Any]:
    register()
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def by_itm(model: Any, processor: Any, image: Image.Image, choice: str) -> float:
    return float(model.match(**processor(images=[image], text=[f"{QUESTION} {choice}"]))[0].softmax(0)[1])


def by_itc(model: Any, processor: Any, image: Image.Image, choice: str) -> float:
    return float(model(**processor(images=[image], text=[f"{QUESTION} {choice}"])).logits_per_image)


def by_words(model: Any, processor: Any, image: Image.Image, choice: str) -> float:
    """Find the answer's tokens by their positions in the sentence, and mask one at a time."""
    sentence, mask = f"{QUESTION} {choice}", processor.tokenizer.mask_token_id
    spans = processor.tokenizer(sentence, return_offsets_mapping=True)["offset_mapping"]
    total = 0.0
    for place, (start, end) in enumerate(spans):
        if end > start and end > len(QUESTION):
            given = processor(images=[image], text=[sentence])
            right = int(given["input_ids"][0, place])
            given["input_ids"][0, place] = mask
            logits: Tensor = model.restore_words(**given)
            total += float(logits[0, place].double().log_softmax(0)[right])
    return total


@pytest.mark.campaign
@pytest.mark.parametrize(("by", "score"), [("itm", by_itm), ("itc", by_itc), ("words", by_words)])
def test_multiple_choice_follows_the_scores(
    by: str, score: Callable[..., float], exported: Path, rows: Path, tmp_path: Path
) -> None:
    found = run_lmms_eval(exported, rows, tmp_path, by, "multiple_choice", "acc", QUESTION)
    model, processor = loaded(exported)
    right = []
    with torch.no_grad():
        for line in map(json.loads, rows.read_text().splitlines()):
            image = Image.open(line["image"]).convert("RGB")
            best = max(CHOICES, key=lambda choice: score(model, processor, image, choice))
            right.append(best == line["answer"])
    assert found == pytest.approx(np.mean(right))
    assert 0 < found < 1


@pytest.mark.campaign
def test_a_model_fine_tuned_for_questions_answers_tasks(answering: Path, rows: Path, tmp_path: Path) -> None:
    lines = list(map(json.loads, rows.read_text().splitlines()))
    model, processor = loaded(answering)
    with torch.no_grad():
        said = [
            GIVEN[int(model(**processor(images=[Image.open(line["image"])], text=[QUESTION])).logits.argmax())]
            for line in lines
        ]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(line | {"answer": said[0]}) + "\n" for line in lines))
    found = run_lmms_eval(answering, asked, tmp_path, "", "generate_until", "exact_match", QUESTION)
    assert found == pytest.approx(np.mean([each == said[0] for each in said]))


def requests(rows: Path, *answers: str, question: str = QUESTION, images: int = 1) -> tuple[list[Any], dict[str, Any]]:
    """Requests as lmms-eval passes them to a model, and their rows."""
    row = json.loads(rows.read_text().splitlines()[0])

    def visual(doc: dict[str, str]) -> list[Image.Image]:
        return [Image.open(doc["image"]).convert("RGB")] * images

    asked = [SimpleNamespace(args=(question, answer, visual, 0, "seen", "test")) for answer in answers]
    return asked, {"seen": {"test": [row]}}


def test_unsupported_requests_are_refused(exported: Path, answering: Path, rows: Path) -> None:
    from mvlm.export.lmms_eval import AnswerScorer

    model = AnswerScorer(str(exported), device="cpu")
    assert model.by == "itm"
    asked, model.task_dict = requests(rows, "red dog")
    with pytest.raises(NotImplementedError, match="writes no text"):
        model.generate_until(asked)
    with pytest.raises(ValueError, match="2 images, and this model reads 1"):
        model.loglikelihood(requests(rows, "red dog", images=2)[0])
    with pytest.raises(ValueError, match="by=probability: this model was trained for itm, itc, words"):
        AnswerScorer(str(exported), by="probability", device="cpu")
    chooser = AnswerScorer(str(answering), device="cpu")
    asked, chooser.task_dict = requests(rows, *GIVEN, "a word that is no class")
    scores = [result.text for result in chooser.loglikelihood(asked)]
    assert sum(np.exp(-score) for score, _ in scores) == pytest.approx(1)
    assert [is_chosen for _, is_chosen in scores].count(True) == 1 and np.isinf(scores[-1][0])
    (said,) = chooser.generate_until(asked[:1])
    assert dict(zip([*GIVEN, ""], scores, strict=True))[said][1]


def test_a_question_is_extracted_from_its_prompt() -> None:
    from mvlm.export.lmms_eval import _question

    assert _question("What is it?\nA. red\nAnswer with the letter.") == "What is it?"
    assert _question("Which colour is it? Answer :") == "Which colour is it?"
    assert _question([""]) == ""
