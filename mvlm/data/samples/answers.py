"""Answers to questions: normalised, counted over a training set, and as soft targets.

Nothing here may import torch when loaded: loader processes must stay small.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mvlm.errors import UserError

MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
"""Words that lack one of their apostrophes; the last four are the evaluation code's own."""

COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_DROPPED = 32
"""At most: the evaluation code passes a flag, whose value is 32, where `re` takes the number of replacements."""


def normalize_answer(answer: str) -> str:
    """An answer as VQA's evaluation code compares it: without articles and most punctuation, numbers as digits.

    Source: processPunctuation and processDigitArticle of github.com/GT-Vision-Lab/VQA, vqaEval.py.
    """
    answer = strip_answer(answer)
    spelled, in_number = answer, COMMA_IN_NUMBER.search(answer) is not None
    for mark in MARKS:
        at_a_space = f"{mark} " in answer or f" {mark}" in answer
        spelled = spelled.replace(mark, "" if at_a_space or in_number else " ")
    spelled = PERIOD.sub("", spelled, count=PERIODS_DROPPED)
    words = (DIGITS.get(word, word) for word in spelled.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def strip_answer(answer: str) -> str:
    """Without line breaks and surrounding space; unanimous answers are normalised no further."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def frequent_answers(questions: Iterable[Sequence[str]], minimum: int) -> tuple[str, ...]:
    """The answers, normalised, that most people gave to at least `minimum` questions; the most frequent first.

    Of answers given equally often to a question, the first counts. A minimum of 9 gives the 3,129 of VQA v2 that
    Anderson et al. (arXiv 1707.07998) and later work classify over.

    Args:
        questions: the answers people gave to each.
    """
    chosen = (Counter(map(normalize_answer, answers)).most_common(1)[0][0] for answers in questions if answers)
    counts = Counter(answer for answer in chosen if answer)
    return tuple(sorted((a for a, count in counts.items() if count >= minimum), key=lambda a: (-counts[a], a)))


def soft_target(answers: Sequence[str], numbers: Mapping[str, int]) -> dict[int, float]:
    """How right each known answer is, min(0.3 x people who gave it, 1); those nobody gave are left out.

    Args:
        numbers: of the known answers.

    Source: Teney et al., "Tips and Tricks for Visual Question Answering" (arXiv 1708.02711), section 3.1.
    """
    counts = Counter(map(normalize_answer, answers))
    return {numbers[answer]: min(0.3 * count, 1.0) for answer, count in counts.items() if answer in numbers}


def save_answers(answers: Sequence[str], path: Path) -> None:
    path.write_text(json.dumps(list(answers), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def load_answers(path: Path) -> tuple[str, ...]:
    """The list that a run was trained with.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}, the answers that the run knows, cannot be read ({error}): copy it again.") from None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{path} is not a list of answers: copy it again.")
    return tuple(answers)
