"""Kinds of constraint that count: words, sentences, paragraphs, lines, list items."""

import re

from sgdpo.constraints import text


def words_at_most(answer: str, *, count: int) -> bool:
    return len(text.words(answer)) <= count


def words_at_least(answer: str, *, count: int) -> bool:
    return len(text.words(answer)) >= count


def words_between(answer: str, *, low: int, high: int) -> bool:
    return low <= len(text.words(answer)) <= high


def sentences(answer: str, *, count: int) -> bool:
    return len(text.sentences(answer)) == count


def sentences_at_most(answer: str, *, count: int) -> bool:
    return len(text.sentences(answer)) <= count


def paragraphs(answer: str, *, count: int) -> bool:
    return len(text.paragraphs(answer)) == count


def lines(answer: str, *, count: int) -> bool:
    return len(text.lines(answer)) == count


def bullets(answer: str, *, count: int) -> bool:
    return _begin(answer, r"[-*+•]") == ["-"] * count


def numbered(answer: str, *, count: int) -> bool:
    """The items are numbered from 1 on, in their order."""
    lines = text.lines(text.plain(answer))
    found = [int(item[1]) for line in lines if (item := re.match(r"(\d{1,6})[.)] +\S", line))]
    return found == list(range(1, count + 1))


def headings(answer: str, *, count: int) -> bool:
    return _begin(answer, r"#{1,6}") == ["#"] * count


def _begin(answer: str, marks: str) -> list[str]:
    """Return the marks that lines begin with, before what they say: one of another kind is one too many."""
    return [found[1] for line in text.lines(answer) if (found := re.match(rf"({marks}) +\S", line))]
