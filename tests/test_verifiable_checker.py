"""The checker scores any string from 0 to 10: 10 for the ideal answer alone, less for every corruption."""

from __future__ import annotations

from random import Random

import pytest

from sgdpo.world.checker import check
from sgdpo.world.tasks import FAMILIES, Task, draw_task
from sgdpo.world.verifiable import corrupt

# Answers worked out by hand.
IDEALS = {
    "Sort: dbca": "abcd",
    "Reverse: abc": "cba",
    "Say twice: ab": "ab ab",
    "Upper case: abc": "ABC",
    "First letters: dog eel cat": "dec",
    "How many letters: abcde": "5 letters",
    "Vowels: beadu": "eau",
    "Add: 17 + 5": "22",
    "Commas between: abc": "a,b,c",
    "In brackets: abc": "[abc]",
    "Reverse, then upper case: abc": "CBA",
    "Sort, then commas: cab": "a,b,c",
}


def task(prompt: str) -> Task:
    """Build the task of a prompt."""
    family, kind = next((n, k) for n, k in FAMILIES.items() if prompt.startswith(k.ask.format("")))
    content = prompt.removeprefix(kind.ask.format(""))
    return Task(family, content, prompt, kind.solve(content))


@pytest.mark.parametrize("prompt", IDEALS)
def test_the_ideal_answers_are_those_worked_out_by_hand(prompt):
    assert task(prompt).ideal == IDEALS[prompt]


def test_every_family_is_worked_out_by_hand_and_there_are_at_least_eight():
    assert {task(prompt).family for prompt in IDEALS} == set(FAMILIES)
    assert len(FAMILIES) >= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_ideal_scores_ten_and_every_corruption_less(family):
    random = Random(0)
    for _ in range(100):
        drawn = draw_task(family, random)
        assert check(drawn, drawn.ideal).total == 10
        assert check(drawn, f"\n {drawn.ideal} \n").total == 10
        wrong = corrupt(drawn, random)
        assert wrong.strip()
        assert 0 <= check(drawn, wrong).total < 10, (drawn, wrong)


@pytest.mark.parametrize(
    ("prompt", "answer", "correct", "form", "padding"),
    [
        # One of four letters wrong: s = 3/4, 7 * 9/16 and 3 * 9/16.
        ("Sort: dbca", "abcc", 3.94, 1.69, 0.0),
        # The right letters in the wrong case: no points for form.
        ("Reverse, then upper case: abc", "cba", 7.0, 0.0, 0.0),
        # Six characters before the answer, 0.4 each.
        ("Sort: dbca", "Sure: abcd", 7.0, 3.0, 2.4),
        # Fourteen characters more would be 5.6 points: at most 4.
        ("Sort: dbca", "abcd I hope this is", 7.0, 3.0, 4.0),
        # Said once instead of twice: two of four letters, s = 1/2; one word is not two.
        ("Say twice: ab", "ab", 1.75, 0.0, 0.0),
        # One off: s = 3/4, and still a number.
        ("Add: 17 + 5", "23", 3.94, 1.69, 0.0),
        # Four off says nothing.
        ("Add: 17 + 5", "26", 0.0, 0.0, 0.0),
        # The number without its unit.
        ("How many letters: abcde", "5", 7.0, 0.0, 0.0),
        ("How many letters: abcde", "05 letters", 7.0, 0.0, 0.0),
        # A right number inside a wrong one is not found.
        ("Add: 17 + 5", "122", 0.0, 0.0, 0.0),
        ("Sort: dbca", "", 0.0, 0.0, 0.0),
    ],
)
def test_scores_worked_out_by_hand(prompt, answer, correct, form, padding):
    score = check(task(prompt), answer)
    assert (score.correct, score.format, score.padding) == pytest.approx((correct, form, padding), abs=0.006)
    assert score.total == pytest.approx(max(0, correct + form - padding), abs=0.011)


def test_more_padding_never_scores_more():
    sort = task("Sort: dbca")
    totals = [check(sort, "abcd" + " x" * count).total for count in range(30)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == 10


STRANGE = [
    "\0",
    "\ud800",
    "²",
    "٣",
    "９" * 5000,
    "1" * 100_000,
    "a" * 100_000,
    "a " * 50_000,
    "ﬀ İ ß",
    "🙂" * 99,
    "\t\n\x0b",
]


@pytest.mark.parametrize("prompt", IDEALS)
def test_the_checker_survives_any_string(prompt):
    random = Random(1)
    garbage = [
        "".join(chr(random.randrange(1, 0x3000)) for _ in range(random.randrange(40))) for _ in range(60)
    ]
    for answer in [*STRANGE, *garbage]:
        assert 0 <= check(task(prompt), answer).total < 10
