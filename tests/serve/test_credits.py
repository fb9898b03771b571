"""The credits of each found picture, from the tables beside the shards, and its SVG for copying."""

import base64

import pytest
from PIL import Image

from mvlm.errors import UserError
from mvlm.serve.asked import AskedDrawings, AskedPicture, AskedSearch
from tests.pictures import encoded
from tests.serve import icons


@pytest.fixture(scope="module")
def answers(loaded, tmp_path_factory):
    return icons.answers(loaded, tmp_path_factory.mktemp("icons"))


def test_every_result_has_its_credits(answers):
    found = answers.search(AskedSearch(sentence="bar", top=icons.COUNT))["found"]
    assert len(found) == icons.COUNT
    for each in found:
        number = int(each["key"].split("-")[1])
        expected = {"name": f"bar-{number}", "set": "bars", "title": "Bars", "author": "Ann <b>"}
        if number < icons.COUNT - 1:
            url = "javascript:alert(1)" if number == 1 else "https://example.org/licence"
            expected |= {"licence": "MIT", "licence_url": url}
        assert each["about"] == expected | {"svg": number < icons.COUNT - 1}


def test_each_picture_has_its_own_drawing(answers):
    found = answers.search(AskedSearch(sentence="bar", top=icons.COUNT))["found"]
    numbers = [int(each["key"].split("-")[1]) for each in found]
    expected = [None if number == icons.COUNT - 1 else icons.SVG.format(4 + 4 * number) for number in numbers]
    assert answers.drawings(AskedDrawings(images=[each["image"] for each in found])) == {"drawings": expected}
    with pytest.raises(UserError, match="no such picture"):
        answers.drawings(AskedDrawings(images=[0, icons.COUNT]))


def test_a_drawing_of_a_picture_in_the_corpus_finds_it(answers):
    picture = answers.index.picture(5).resize((256, 256), Image.Resampling.NEAREST)
    drawn = AskedPicture(upload=base64.b64encode(encoded(picture, "PNG")).decode())
    best = answers.search(AskedSearch(picture=drawn, top=1))["found"][0]
    assert best["image"] == 5 and best["similarity"] > 0.999
