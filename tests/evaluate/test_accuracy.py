"""Scores of the fine-tuning tasks on cases worked by hand; benchmarks/peers/compare_vqa.py runs the public code."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mvlm.data.samples.answers import frequent_answers, normalize_answer, soft_target
from mvlm.evaluate.accuracy import consistency, mean_by, vqa_accuracy
from mvlm.evaluate.labelled import LabelledTask, score


@pytest.mark.parametrize(
    ("given", "normalized"),
    [
        ("The Red car.", "red car"),
        ("an apple, a pear", "apple pear"),
        ("two", "2"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("3.5 ft.", "3.5 ft"),
        ("dont", "don't"),
        ("youre", "you're"),
        ("somebody'd", "somebodyd"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("10-15, 20", "10 15 20"),
        ("10-1,500", "101500"),  # if a number has a comma, punctuation leaves no space
        ("yes\n", "yes"),
        ("a", ""),
        ("." * 40, "." * 8),  # at most 32 periods are removed
    ],
)
def test_an_answer_is_normalized_as_in_the_public_code(given: str, normalized: str) -> None:
    assert normalize_answer(given) == normalized


@pytest.mark.parametrize(
    ("same", "accuracy"),
    [
        (0, Fraction(0)),
        (
            1,
            Fraction(9 * 1, 3 * 10),
        ),  # leaving out that person leaves no match, leaving out any of the other nine leaves one
        (2, Fraction(2 * 1 + 8 * 2, 3 * 10)),
        (3, Fraction(3 * 2 + 7 * 3, 3 * 10)),
        (4, Fraction(1)),
        (9, Fraction(1)),
    ],
)
def test_accuracy_is_averaged_over_leaving_each_person_out(same: int, accuracy: Fraction) -> None:
    answers = ["red"] * same + [f"other {number}" for number in range(10 - same)]
    assert vqa_accuracy("Red", answers) == pytest.approx(float(accuracy), abs=1e-12)


def test_spelling_matters_if_everyone_agrees() -> None:
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1


def test_the_answer_list_counts_each_question_once_by_its_most_frequent_answer() -> None:
    of_people = [["a dog", "dog", "cat"]] * 3 + [["cat", "cat", "dog"]] * 2 + [["The Cat.", "cat", "x"], ["yes"]]
    assert frequent_answers(of_people, minimum=3) == ("cat", "dog")
    assert frequent_answers(of_people, minimum=1) == ("cat", "dog", "yes")
    assert frequent_answers([["the", "the"]], minimum=1) == ()


def test_soft_targets_add_spellings_up_and_omit_unknown_answers() -> None:
    answers = ["2", "two", "Two.", "3", "four", "4", "4 ", "a 4", "many", "many"]
    assert soft_target(answers, {"2": 0, "3": 1, "4": 2, "5": 3}) == pytest.approx({0: 0.9, 1: 0.3, 2: 1.0})


def test_a_sentence_is_consistent_only_if_all_its_pairs_are_right() -> None:
    groups = ["s", "t", "s", "t", "u"]
    assert consistency([True, True, False, True, False], [True, True, False, False, False], groups) == 2 / 3


def test_scores_are_averaged_by_kind() -> None:
    found = mean_by(["where", "count", "where"], [1.0, 0.3, 0.0])
    assert found == {"count": {"score": 0.3, "rows": 1}, "where": {"score": 0.5, "rows": 2}}
    assert list(found) == ["count", "where"]


def test_the_table_counts_only_rows_with_answers() -> None:
    rows = [{"answers": answers, "question_type": "what"} for answers in (["red"] * 10, [], [])]
    result = {"rows": 3, "protocol": ""} | score("vqa", ["red", "blue", "red"], rows)
    (accuracy,) = (line for line in LabelledTask("vqa").text(result).splitlines() if "accuracy" in line)
    assert accuracy.split("│")[1:4] == [" accuracy ", " 100.00 ", " 1    "]
