"""Our VQA accuracy compared with the public evaluation code's, on random and adversarial answers.

    git clone https://github.com/GT-Vision-Lab/VQA && python -m benchmarks.peers.compare_vqa VQA --json results.json

The public code is Python 2: its print statements, and nothing else, are rewritten in memory.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mvlm.data.samples.answers import CONTRACTIONS, DIGITS, MARKS, normalize_answer
from mvlm.evaluate.accuracy import vqa_accuracy

PEOPLE = 10
WORDS = [
    "red",
    "2",
    "1,000",
    "3.5",
    "U.S.",
    "a",
    "An",
    "the",
    "Zero",
    "TEN",
    "none",
    "Im",
    "i'd've",
    "",
    "\n",
    "\t",
    "é",
    "½",
]


def public_evaluation(folder: Path) -> Any:
    """The class VQAEval from a clone of the repository."""
    source = (folder / "PythonEvaluationTools/vqaEvaluation/vqaEval.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.sub(r'print (".*")', r"print(\1)", source), names)
    return names["VQAEval"]


def random_answer(draw: random.Random) -> str:
    """Words, contractions without their apostrophes, numbers and marks, with and without space between them."""
    words = draw.choice([WORDS, WORDS, list(CONTRACTIONS), list(CONTRACTIONS.values()), list(DIGITS)])
    parts = [draw.choice(words) if draw.random() < 0.6 else draw.choice([*MARKS, ".", "..", "'"]) for _ in range(4)]
    return draw.choice(["", " "]).join(parts[: draw.randint(0, 4)])


def questions(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Predictions with ten answers each; most predictions are one of the answers, or one with another spelling."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        pool = [random_answer(draw) for _ in range(draw.randint(1, 4))]
        answers = [draw.choice(pool) for _ in range(PEOPLE)]
        prediction = draw.choice([draw.choice(pool), normalize_answer(draw.choice(pool)), random_answer(draw)])
        made.append((prediction, answers))
    return made


def public_scores(evaluation: Any, made: list[tuple[str, list[str]]]) -> list[float]:
    """The public code's score of each question, 0 to 1."""
    scores: list[float] = []
    truth = {
        number: {
            "answers": [{"answer": answer, "answer_id": person} for person, answer in enumerate(answers)],
            "question_type": "any",
            "answer_type": "other",
        }
        for number, (_, answers) in enumerate(made)
    }
    vqa = SimpleNamespace(qa=truth, getQuesIds=lambda: list(truth))
    results = SimpleNamespace(qa={number: {"answer": prediction} for number, (prediction, _) in enumerate(made)})
    judge = evaluation(vqa, results)
    judge.setEvalQA = lambda number, score: scores.append(score)
    judge.updateProgress = lambda share: None
    judge.evaluate()
    return scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of github.com/GT-Vision-Lab/VQA")
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    made = questions(args.questions, args.seed)
    ours = [vqa_accuracy(prediction, answers) for prediction, answers in made]
    theirs = public_scores(public_evaluation(args.clone), made)
    unlike = [(case, mine, public) for case, mine, public in zip(made, ours, theirs, strict=True) if mine != public]
    found = {"questions": len(made), "different": len(unlike), "mean": sum(ours) / len(ours), "examples": unlike[:5]}
    args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(unlike)} of {len(made)} questions scored differently; mean accuracy {found['mean']:.4f}")
    return 1 if unlike else 0


if __name__ == "__main__":
    raise SystemExit(main())
