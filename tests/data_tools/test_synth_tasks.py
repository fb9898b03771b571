"""The synthetic tasks: answers follow from the pixels, and neither text nor image alone gives them away."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from functools import cache
from itertools import pairwise

import numpy as np
import observer
import pytest

from data_tools.split import Split
from data_tools.synth.holdout import MOST, NOVEL, held_out, with_novel
from data_tools.synth.records import records

Row = dict

ROWS = {"vqa": 3600, "pairs": 3200, "entailment": 3600, "foils": 2000}
GOLDEN = {
    "caption": "0547db05f7ca06bb9b1540f06a1831db574062398be98bd73fe99f83c524a06a",
    "vqa": "eee0b39d74fd7ab152015ef2da2f9c90ff4fe224b9cd86da5115cb116034a154",
    "pairs": "17452471ac462854abbd6fe7c2c16bcdc28ca1ac521d180eb5dac1354115b1ce",
    "entailment": "e49eb1a08a2bfa67d38fbbf758c034afb9a0a791a695c0d2bd83e0a8e87e240c",
    "foils": "58970bcf478c3567245bbfa051c74d8379448880c994bb41a313751f4a905c02",
}
"""SHA-256 of keys, images and columns of 500 rows of seed 5."""


@cache
def rows(task: str, held: int = 0) -> list[Row]:
    """Rows as shards hold them, with their group and what the observer sees in their images."""
    made = []
    for record in records(task, ROWS[task], 3, held_out(held, 3)):
        views = [observer.view(image) for image in (record.image, record.image2) if image]
        made.append(dict(record.columns) | {"views": views, "group": record.fields["group"], "record": record})
    return made


def answer_of(task: str, row: Row) -> Hashable:
    return row["answers"][0] if task == "vqa" else row["label"]


def text_of(row: Row) -> str:
    return row.get("question") or row["sentence"]


@pytest.mark.parametrize("held", [0, 4])
def test_answers_follow_from_the_pixels(held: int) -> None:
    for row in rows("vqa", held):
        assert row["answers"] == [observer.answer(row["question"], row["views"][0])] * 10
    for row in rows("pairs", held):
        assert row["label"] is observer.true_of(row["sentence"], *row["views"])
    for row in rows("entailment", held):
        assert row["label"] == observer.relation(row["sentence"], row["views"][0])
    for row in rows("foils", held):
        assert row["caption"] == observer.caption(row["views"][0])


def test_a_foil_swaps_one_attribute_and_is_the_caption_of_its_twin() -> None:
    twins = defaultdict(list)
    for row in rows("foils"):
        caption, foil = row["caption"].split(", "), row["foil"].split(", ")
        changed = [(a.split(), b.split()) for a, b in zip(caption, foil, strict=True) if a != b]
        (a, a_foil), (b, b_foil) = changed
        at = {"colour": 0, "shape": 1}[row["swapped"]]
        assert (a_foil[at], b_foil[at]) == (b[at], a[at])
        a_foil[at], b_foil[at] = a[at], b[at]
        assert (a, b) == (a_foil, b_foil)
        twins[row["group"]].append((row["caption"], row["foil"]))
    assert all(a == b[::-1] for a, b in twins.values())
    assert 0.4 < Counter(row["swapped"] for row in rows("foils"))["colour"] / ROWS["foils"] < 0.6


def test_each_sum_stated_in_a_block_holds_for_one_pair_and_is_one_off_for_the_other() -> None:
    blocks = defaultdict(set)
    for row in whole_blocks(rows("pairs")):
        if found := re.fullmatch(r"The number of ([\w ]+) in both images together is (\w+)\.", row["sentence"]):
            total = sum(observer.number(found[1], seen) for seen in row["views"])
            blocks[row["group"]].add((found[1], found[2], total, row["label"]))
    words = {"one": 1, "two": 2, "three": 3}
    assert {word for block in blocks.values() for _, word, _, _ in block} == words.keys()
    for block in blocks.values():
        (_,) = {kind for kind, _, _, _ in block}
        less, more = sorted({words[word] for _, word, _, _ in block})
        assert more == less + 1
        assert {(words[word], total, label) for _, word, total, label in block} == {
            (stated, total, stated == total) for stated in (less, more) for total in (less, more)
        }


CHANCE = {"pairs": 1 / 2, "entailment": 1 / 3}


@pytest.mark.parametrize("held", [0, 4])
@pytest.mark.parametrize("task", ["pairs", "entailment"])
def test_text_alone_and_image_alone_are_at_chance_exactly(task: str, held: int) -> None:
    """Even for the best guesser, which looks up every text or image in the very rows that it is tested on."""
    made = whole_blocks(rows(task, held))
    assert best_guess(made, lambda row: (row["group"], text_of(row)), task) == pytest.approx(CHANCE[task])
    assert best_guess(made, lambda row: (row["group"], image_of(row)), task) == pytest.approx(CHANCE[task])


def test_questions_alone_and_images_alone_are_at_chance() -> None:
    made = whole_blocks(rows("vqa"))
    chances = {"colour": (1 / 6, 1 / 3), "shape": (1 / 4, 1 / 3), "where": (1 / 4, 1 / 3)}
    chances |= {"count": (1 / 3, 1 / 3), "exists": (1 / 2, 1 / 2)}
    for kind, (question_alone, image_alone) in chances.items():
        of_kind = [row for row in made if row["question_type"] == kind]
        assert 550 < len(of_kind) < 800
        assert best_guess(of_kind, lambda row: row["question"], "vqa") == pytest.approx(question_alone)
        assert best_guess(of_kind, image_of, "vqa") == pytest.approx(image_alone)


def test_questions_alone_stay_near_chance_if_things_are_held_out() -> None:
    """If K of a shape's six colours are held out, chance is 1 / (6 - K), and the answers left are less balanced."""
    seen = [row for row in rows("vqa", 4) if not row["record"].fields[NOVEL]]
    for kind, bound in {"colour": 0.36, "shape": 0.46, "where": 0.26, "count": 0.34, "exists": 0.5}.items():
        of_kind = [row for row in seen if row["question_type"] == kind]
        assert best_guess(of_kind, lambda row: row["question"], "vqa") <= bound + 1e-9, kind


def whole_blocks(made: list[Row]) -> list[Row]:
    """All but the last block, which the number of rows may have cut."""
    return [row for row in made if row["group"] != made[-1]["group"]]


def image_of(row: Row) -> Hashable:
    return row["record"].image, row["record"].image2


def best_guess(made: list[Row], key: Callable[[Row], Hashable], task: str) -> float:
    """The highest accuracy that is possible for a guesser that knows only `key` of a row."""
    answers: dict[Hashable, Counter] = defaultdict(Counter)
    for row in made:
        answers[key(row)][answer_of(task, row)] += 1
    return sum(max(counter.values()) for counter in answers.values()) / len(made)


def halves(task: str) -> tuple[list[Row], list[Row]]:
    """Train and test rows, split by group."""
    split = Split({"train": 0.6, "test": 0.4}, "group")
    parts: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows(task):
        parts[split.allot(row["record"])].append(row)
    return parts["train"], parts["test"]


def fitted_accuracy(features: Callable[[Row], list[float]], task: str) -> float:
    """Accuracy on the test rows of a logistic regression fitted to the features of the train rows."""
    train, test = halves(task)
    names = sorted({answer_of(task, row) for row in train}, key=str)
    x, x_test = (np.array([[1.0, *features(row)] for row in part]) for part in (train, test))
    y, y_test = (np.array([names.index(answer_of(task, row)) for row in part]) for part in (train, test))
    weights, target = np.zeros((x.shape[1], len(names))), np.eye(len(names))[y]
    for _ in range(150):
        scores = np.exp(x @ weights - (x @ weights).max(1, keepdims=True))
        weights += 0.5 * x.T @ (target - scores / scores.sum(1, keepdims=True)) / len(x)
    return float(((x_test @ weights).argmax(1) == y_test).mean())


def hashed_words(row: Row) -> list[float]:
    """Counts of words and of pairs of adjacent words, hashed into 256 buckets."""
    found = re.findall(r"\w+", text_of(row).lower())
    bag = [0.0] * 256
    for term in [*found, *map(" ".join, pairwise(found))]:
        bag[hashlib.md5(term.encode()).digest()[0]] += 1
    return bag


def denial(row: Row) -> float:
    return float(bool(re.search(r"\b(not|no|neither|different)\b", text_of(row), re.IGNORECASE)))


def sizes(row: Row) -> list[float]:
    return [float(len(seen)) for seen in row["views"]]


def sizes_and_polarity(row: Row) -> list[float]:
    """The polarity of the sentence, the numbers of things, and their products."""
    return [denial(row), *sizes(row), *(denial(row) * size for size in sizes(row))]


PREDICTORS: dict[str, Callable[[Row], list[float]]] = {
    "bag of words": hashed_words,
    "numbers of things": sizes,
    "all counts": lambda row: [float(count) for count in observer.counts(row["views"])],
    "numbers and polarity": sizes_and_polarity,
    "words and numbers": lambda row: [*hashed_words(row), *sizes(row)],
}


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("task", CHANCE)
def test_simple_predictors_learn_nothing(task: str, predictor: str) -> None:
    """In a first version of the task, the number of things alone was right for 76 % of the pairs."""
    test = len(halves(task)[1])
    margin = 3.5 * (0.25 / test) ** 0.5
    assert fitted_accuracy(PREDICTORS[predictor], task) == pytest.approx(CHANCE[task], abs=margin)


def test_a_predictor_learns_an_answer_that_is_among_its_features() -> None:
    def leaky(row: Row) -> list[float]:
        return [*hashed_words(row), float(row["label"])]

    assert fitted_accuracy(leaky, "pairs") > 0.95


def test_the_numbers_of_things_are_the_same_throughout_a_group() -> None:
    for task in ("pairs", "entailment", "vqa"):
        sizes_of_group = defaultdict(set)
        for row in whole_blocks(rows(task)):
            sizes_of_group[row["group"]].add(tuple(sizes(row)))
        assert all(len(found) == 1 for found in sizes_of_group.values())
    assert {tuple(sizes(row)) for row in rows("pairs")} == {(2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4)}


@pytest.mark.parametrize("task", ["vqa", "pairs", "entailment", "foils"])
@pytest.mark.parametrize("held", [0, 4])
def test_train_and_test_share_no_scene(task: str, held: int) -> None:
    split = Split({"train": 0.8, "test": 0.2}, "group")
    if held:
        split = with_novel(split)
    parts: dict[str | None, set[bytes]] = defaultdict(set)
    for row in rows(task, held):
        parts[split.allot(row["record"])] |= {image for image in image_of(row) if image}
    assert len(parts) == (3 if held else 2)
    names = list(parts)
    assert all(parts[a].isdisjoint(parts[b]) for a in names for b in names if a != b)


@pytest.mark.parametrize("task", ["vqa", "pairs", "foils", "entailment"])
def test_only_novel_rows_show_what_is_held_out(task: str) -> None:
    names = {" ".join(thing) for thing in held_out(4, 3)}
    novel_rows = 0
    for row in rows(task, 4):
        for seen in row["views"]:
            assert bool(names & set(seen.values())) == row["record"].fields[NOVEL]
        novel_rows += row["record"].fields[NOVEL]
    assert 0.05 < novel_rows / ROWS[task] < 0.75


def test_every_colour_and_shape_is_left_for_training() -> None:
    for seed in range(50):
        things = held_out(MOST, seed)
        assert len(things) == MOST
        assert max(Counter(colour for colour, _ in things).values()) <= 2
        assert max(Counter(shape for _, shape in things).values()) <= 3
    assert held_out(4, 0) != held_out(4, 1)


@pytest.mark.parametrize("task", GOLDEN)
def test_the_bytes_never_change(task: str) -> None:
    digest = hashlib.sha256()
    for record in records(task, 500, 5, frozenset()):
        columns = [f"{name}={value}" for name, value in sorted(record.columns.items())]
        texts = [record.key, record.source, *record.captions, *columns]
        digest.update("\n".join(texts).encode() + record.image + record.image2)
    assert digest.hexdigest() == GOLDEN[task]


@pytest.mark.parametrize("task", ["vqa", "pairs", "entailment", "foils"])
def test_keys_are_unique(task: str) -> None:
    keys = {record.key for record in records(task, 3_000, 0, frozenset())}
    assert len(keys) == 3_000
