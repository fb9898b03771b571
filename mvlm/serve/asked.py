"""The page's requests, with bounds on each value."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

LONGEST = 2000
"""The most characters in a sentence, as in the page's fields."""


def _as_a_sentence(words: list[str]) -> list[str]:
    if len(" ".join(words)) > LONGEST:
        raise PydanticCustomError("too_long", f"Words should have at most {LONGEST} characters together")
    return words


Sentence = Annotated[str, Field(max_length=LONGEST)]
Words = Annotated[list[str], Field(min_length=1), AfterValidator(_as_a_sentence)]
Numbers = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=10_000)]

MOST_FOUND = 50
MOST_SKIPPED = 1024


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AskedPicture(_Strict):
    """One of three: a file in base64, the number of a sample, or that of an image in the index."""

    upload: str | None = None
    sample: Annotated[int, Field(ge=0)] | None = None
    found: Annotated[int, Field(ge=0)] | None = None


class AskedView(_Strict):
    picture: AskedPicture


class AskedSearch(_Strict):
    """A search by a sentence or by a picture; the first `skip` results are left out, having been shown before."""

    sentence: Sentence = ""
    picture: AskedPicture | None = None
    top: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 8
    skip: Annotated[int, Field(ge=0, le=MOST_SKIPPED)] = 0


class AskedDrawings(_Strict):
    """The sources of drawings, by the numbers of their images in the index."""

    images: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_FOUND)]


class AskedPatches(_Strict):
    picture: AskedPicture
    sentence: Sentence
    hidden: Numbers  # squares of the grid, row by row


class AskedWords(_Strict):
    picture: AskedPicture
    words: Words
    hidden: Numbers  # places among `words`
    other: AskedPicture | None = None
