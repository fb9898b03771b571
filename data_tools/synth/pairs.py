"""Two scenes and a statement about both, true or false, as in NLVR2.

A block is two pairs of scenes, A and B, and two statements with their denials; of a statement and its denial, one
holds for A and the other for B. So each sentence is true once and false once, and each pair of images has as many true
sentences as false ones: chance is 1/2 from the text alone and from the images alone. A and B have as many things left
and right as each other, so numbers of things say nothing even together with the polarity of the sentence.

A sum is denied by another sum, not by "not two": the answer would then depend on two counts, the stated number and the
polarity all at once, none of which says anything without the others, and training would find it only by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from .blocks import Block, Dice, SyntheticSample, fresh, numbered, one_kind
from .scenes import COLOURS, SHAPES, THINGS, Scene, Thing, with_article

Pair = tuple[Scene, Scene]
Claim = tuple[str, Callable[[Pair], bool]]  # what is said, and when it holds
Statement = tuple[Claim, Claim]  # a claim and its denial
Template = Callable[[Dice, Thing], Statement]

STATEMENTS_A_BLOCK = 2


def pairs(count: int, seed: int, held_out: frozenset[Thing] = frozenset()) -> Iterator[SyntheticSample]:
    """`count` rows, in blocks of eight; all scenes of a block hold something held out, or none does."""
    return numbered(fresh(_draws(Dice(f"pairs/{seed}"), held_out)), "pairs", count, seed)


def _draws(dice: Dice, held_out: frozenset[Thing]) -> Iterator[Callable[[], Block | None]]:
    while True:
        # Chosen before the scenes: statements that are rarely true must not become rare.
        statements = dice.sample(STATEMENTS, STATEMENTS_A_BLOCK)
        shown = sorted(held_out) if held_out and dice.coin() else []
        yield partial(_block, statements, shown, dice, held_out)


def _block(
    templates: Sequence[Template], shown: Sequence[Thing], dice: Dice, held_out: frozenset[Thing]
) -> Block | None:
    """Pairs that tell the statements apart; each scene holds one of the things in `shown`, if any, or none held out."""
    pool = THINGS if shown else [thing for thing in THINGS if thing not in held_out]
    thing = dice.pick(pool)
    numbers = dice.pick(((2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4)))
    a, b = (_pair(numbers, lambda number: _scene_with(dice, pool, thing, shown, number)) for _ in range(2))
    statements = [draw(dice, thing) for draw in templates]
    if not all(_told_apart(a, b, *statement) for statement in statements):
        return None
    if len({*a, *b}) < 4 or not one_kind((*a, *b), held_out):
        return None
    return [
        SyntheticSample(pair, {"sentence": sentence, "label": holds(pair)})
        for statement in statements
        for sentence, holds in statement
        for pair in (a, b)
    ]


def _told_apart(a: Pair, b: Pair, claim: Claim, denial: Claim) -> bool:
    """Whether one of the two holds for A alone, and the other for B alone."""
    (_, said), (_, denied) = claim, denial
    return said(a) == denied(b) != said(b) == denied(a)


def _pair(numbers: tuple[int, int], scene: Callable[[int], Scene]) -> Pair:
    left, right = map(scene, numbers)
    return left, right


def _scene_with(dice: Dice, pool: Sequence[Thing], thing: Thing, shown: Sequence[Thing], number: int) -> Scene:
    """Things by chance, one of `shown`, and half the time `thing` or a near miss of it among them."""
    things = [dice.pick(pool) for _ in range(number)]
    if shown:
        things[-1] = dice.pick(shown)
    if dice.coin():
        near = ((thing[0], dice.pick(list(SHAPES))), (dice.pick(list(COLOURS)), thing[1]))
        things[0] = dice.pick((thing, thing, *near))
    return dice.scene(things)


def _denied(said: str, negation: str, holds: Callable[[Pair], bool]) -> Statement:
    return (said, holds), (negation, lambda pair: not holds(pair))


def _both(dice: Dice, thing: Thing) -> Statement:
    return _denied(
        f"Both images show {with_article(thing)}.",
        f"It is not so that both images show {with_article(thing)}.",
        lambda pair: thing in pair[0] and thing in pair[1],
    )


def _either(dice: Dice, thing: Thing) -> Statement:
    return _denied(
        f"At least one image shows {with_article(thing)}.",
        f"Neither image shows {with_article(thing)}.",
        lambda pair: thing in pair[0] or thing in pair[1],
    )


def _side(dice: Dice, thing: Thing) -> Statement:
    side = dice.pick((0, 1))
    name = ("left", "right")[side]
    return _denied(
        f"The {name} image shows {with_article(thing)}.",
        f"The {name} image does not show {with_article(thing)}.",
        lambda pair: thing in pair[side],
    )


def _same_number(dice: Dice, thing: Thing) -> Statement:
    kind, number = _kind(dice, thing)
    return _denied(
        f"Both images show the same number of {kind}.",
        f"The images show different numbers of {kind}.",
        lambda pair: number(pair[0]) == number(pair[1]),
    )


def _more(dice: Dice, thing: Thing) -> Statement:
    kind, number = _kind(dice, thing)
    return _denied(
        f"There are more {kind} in the left image than in the right one.",
        f"There are not more {kind} in the left image than in the right one.",
        lambda pair: number(pair[0]) > number(pair[1]),
    )


def _total(dice: Dice, thing: Thing) -> Statement:
    kind, number = _kind(dice, thing)

    def claim(stated: int) -> Claim:
        sentence = f"The number of {kind} in both images together is {('one', 'two', 'three')[stated - 1]}."
        return sentence, lambda pair: number(pair[0]) + number(pair[1]) == stated

    less = dice.pick((1, 2))
    return claim(less), claim(less + 1)


def _kind(dice: Dice, thing: Thing) -> tuple[str, Callable[[Scene], int]]:
    """A plural, "red things" or "circles", and how many of them a scene has."""
    attribute = dice.pick((0, 1))
    name = f"{thing[0]} things" if attribute == 0 else f"{thing[1]}s"
    return name, lambda scene: sum(cell is not None and cell[attribute] == thing[attribute] for cell in scene)


STATEMENTS: tuple[Template, ...] = (_both, _either, _side, _same_number, _more, _total)
