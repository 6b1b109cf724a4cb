"""Kinds of constraint on what is said: words and letters asked for or forbidden, their order, the language."""

import re
from collections.abc import Sequence
from itertools import pairwise

from sgdpo.constraints import text

# The commonest short words of the languages that can be asked for; a few stand in two lists and decide nothing.
LANGUAGES = {
    language: frozenset(common.split())
    for language, common in {
        "English": "the and of to is it you with for that are your this can have",
        "French": "le la les et des est une un vous pour dans avec sur pas ce",
        "German": "der die das und ist nicht ein eine mit sie zu auf für den es",
        "Spanish": "el la los las y es una un que para con en por se su",
        "Italian": "il la gli e è una un che per con di non sono del della",
    }.items()
}


def contains(answer: str, *, word: str) -> bool:
    return word in text.words(answer)


def without_word(answer: str, *, word: str) -> bool:
    return word not in text.words(answer)


def without_letter(answer: str, *, letter: str) -> bool:
    return letter not in answer.lower()


def letter_at_least(answer: str, *, letter: str, count: int) -> bool:
    return answer.lower().count(letter) >= count


def word_times(answer: str, *, word: str, count: int) -> bool:
    return text.words(answer).count(word) >= count


def in_order(answer: str, *, items: Sequence[str]) -> bool:
    """Each item is named, and first named after the one before it."""
    places = [text.words(answer).index(item) if item in text.words(answer) else -1 for item in items]
    return -1 not in places and all(one < other for one, other in pairwise(places))


def language(answer: str, *, tongue: str) -> bool:
    """More of its common words are there than of any other language's, and at least one word in ten is one."""
    found = text.words(answer)
    counts = {each: sum(found.count(word) for word in common) for each, common in LANGUAGES.items()}
    others = max(count for each, count in counts.items() if each != tongue)
    return counts[tongue] > others and 10 * counts[tongue] >= len(found)


def numbers_at_least(answer: str, *, count: int) -> bool:
    return len(re.findall(r"\d+(?:[.,]\d+)*", answer)) >= count


def without_digits(answer: str) -> bool:
    return not re.search(r"\d", answer)
