"""The checker scores any string from 0 to 10: 10 for the ideal answer alone, less for every corruption."""

from __future__ import annotations

from random import Random

import pytest

from sgdpo.world.checker import check
from sgdpo.world.corruptions import cut, drop, reform, replace, shortcut, swap
from sgdpo.world.tasks import FAMILIES, Task, draw_task
from sgdpo.world.verifiable import corrupt

WRONG = (cut, drop, reform, replace, shortcut, swap)

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


@pytest.mark.parametrize("family", FAMILIES)
def test_who_gives_several_answers_gets_no_more_than_for_the_worst(family):
    """The right answer beside each kind of wrong one, in both orders and five kinds of joints."""
    random, tried = Random(2), 0
    for _ in range(30):
        drawn = draw_task(family, random)
        for change in WRONG:
            wrong = change(drawn.ideal, drawn, random).strip()
            alone = check(drawn, wrong)
            # What is hardly like an answer, or a word that people say anyway, is padding: it takes points, not all.
            if wrong == drawn.ideal or alone.correct < 1.75 or wrong.lower() in ("a", "or", "the"):
                continue
            for joint in (" ", " or ", "\n", ", ", " / "):
                for several in (f"{drawn.ideal}{joint}{wrong}", f"{wrong}{joint}{drawn.ideal}."):
                    assert check(drawn, several).total <= alone.total + 0.01, (drawn, several)
                    tried += 1
    assert tried > 100


@pytest.mark.parametrize("prompt", IDEALS)
def test_a_full_stop_costs_next_to_nothing(prompt):
    ideal = IDEALS[prompt]
    assert check(task(prompt), f"{ideal}.").total == 9.6
    assert check(task(prompt), f"Answer: {ideal}.").total == pytest.approx(10 - 0.4 * 9)


def test_guesses_are_not_rewarded_and_repetition_is_padding():
    add = task("Add: 17 + 5")
    assert check(add, "20 21 22").total <= check(add, "20").total
    assert check(add, " ".join(map(str, range(10, 34)))).total == 0
    assert check(add, "22 22").total == pytest.approx(8.8)
    assert check(add, "17 + 5 = 22").total == pytest.approx(6.4)  # 9 characters of padding
    assert check(add, "17 22").total == 0
    count = task("How many letters: abcde")
    assert check(count, "5 letters 5").total <= check(count, "5").total
    assert check(count, "It is 5 letters.").total == pytest.approx(10 - 0.4 * 7)
    assert check(task("Say twice: ab"), "ab ab ab ab").total == pytest.approx(10 - 0.4 * 6)
    assert check(task("Sort: dbca"), "abcd or dbca").total <= check(task("Sort: dbca"), "dbca").total
    assert check(task("Vowels: beadu"), "eau, not beadu").total <= check(task("Vowels: beadu"), "beadu").total


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
