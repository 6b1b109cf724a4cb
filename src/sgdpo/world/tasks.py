"""The instruction families of the generated world: one-line tasks whose right answer is known.

Every task is made from its content (a short word, three words, or two numbers). The content alone, whatever
the family asks of it, decides by its hash whether a task is held out for evaluation, so that no model is ever
evaluated on a content that it met in training, under this seed or another.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from sgdpo.store import hash_text

LETTERS = "abcdefghilmnoprstu"
VOWELS = "aeiou"
WORD_LENGTHS = (3, 6)
# What people say before and after an answer.
OPENINGS = ("Sure: ", "Answer: ", "It is ", "Well, ")
CLOSINGS = (" ok?", " I hope so.", " Done!", " and more")
COURTESIES = (*OPENINGS, *CLOSINGS)
# One content in five is held out.
HELD_OUT_FIFTH = 5


@dataclass(frozen=True)
class Task:
    """Hold one instruction and its only perfect answer.

    content: what the instruction is about, e.g. the word to sort.
    """

    family: str
    content: str
    prompt: str
    ideal: str

    @property
    def task_id(self) -> str:
        """Return the task's name, the same in every world."""
        return f"{self.family}:{self.content}"

    @property
    def held_out(self) -> bool:
        """Say whether the task belongs to evaluation: a matter of its content alone."""
        return int(hash_text(self.content, 2), 16) % HELD_OUT_FIFTH == 0


@dataclass(frozen=True)
class Genre:
    """Hold a kind of answers: how tasks are drawn, how answers go wrong, and who checks them.

    draw: a family's name and random numbers to a task. check: a task and any string to a Score. grade: to the number
    that pairs are made by. corruptions: what `corruptions.py` holds. perfect: how often a candidate of a pair is the
    ideal. equal_length: how often the two answers of a pair are of equal length. further: the chance of each further
    corruption of one answer, up to `most` in all.
    """

    families: Sequence[str]
    draw: Callable[[str, Random], Task]
    check: Callable[[Task, str], Any]
    grade: Callable[[Task, str], float]
    corruptions: Sequence[Callable[[str, Task, Random], str]]
    perfect: float
    equal_length: float
    further: float
    most: int


@dataclass(frozen=True)
class Family:
    """Hold one kind of instruction.

    ask: the prompt, with {} for the content. solve: content to perfect answer. shape: what an answer of the
    right form looks like, right or wrong. shortcut: the tempting wrong answer (the input unchanged, or half
    of a two-part request). draw: content from a generator of random numbers.
    """

    ask: str
    solve: Callable[[str], str]
    shape: re.Pattern[str]
    shortcut: Callable[[str], str]
    draw: Callable[[Random], str]

    @property
    def numeric(self) -> bool:
        """Say whether the answer is a number, which is compared by value."""
        return self.shape in (_NUMBER, _COUNT)


def _word(random: Random) -> str:
    return "".join(random.choices(LETTERS, k=random.randint(*WORD_LENGTHS)))


def _word_with_vowel(random: Random) -> str:
    while True:
        word = _word(random)
        if any(letter in VOWELS for letter in word[1:]) and any(letter not in VOWELS for letter in word):
            return word


def _words(random: Random) -> str:
    return " ".join("".join(random.choices(LETTERS, k=random.randint(2, 3))) for _ in range(3))


def _numbers(random: Random) -> str:
    return f"{random.randint(10, 89)} + {random.randint(1, 9)}"


def _sum(content: str) -> str:
    return str(sum(int(number) for number in content.split(" + ")))


def _vowels(content: str) -> str:
    return "".join(letter for letter in content if letter in VOWELS)


def _sorted(content: str) -> str:
    return "".join(sorted(content))


def _same(content: str) -> str:
    return content


_NUMBER = re.compile(r"[0-9]+")
_COUNT = re.compile(r"[0-9]+ letters")
_LOWER = re.compile(r"[a-z]+")
_UPPER = re.compile(r"[A-Z]+")
_TWICE = re.compile(r"[a-z]+ [a-z]+")
_COMMAS = re.compile(r"[a-z](,[a-z])*")
_BRACKETS = re.compile(r"\[[a-z]+\]")

FAMILIES: dict[str, Family] = {
    "sort": Family("Sort: {}", _sorted, _LOWER, _same, _word),
    "reverse": Family("Reverse: {}", lambda c: c[::-1], _LOWER, _same, _word),
    "repeat": Family("Say twice: {}", lambda c: f"{c} {c}", _TWICE, _same, _word),
    "upper": Family("Upper case: {}", str.upper, _UPPER, _same, _word),
    "initials": Family(
        "First letters: {}",
        lambda c: "".join(w[0] for w in c.split()),
        _LOWER,
        lambda c: c.split()[0],
        _words,
    ),
    "count": Family(
        "How many letters: {}", lambda c: f"{len(c)} letters", _COUNT, lambda c: str(len(c)), _word
    ),
    "vowels": Family("Vowels: {}", _vowels, _LOWER, _same, _word_with_vowel),
    "add": Family("Add: {}", _sum, _NUMBER, lambda c: c.split(" + ")[0], _numbers),
    "commas": Family("Commas between: {}", ",".join, _COMMAS, _same, _word),
    "brackets": Family("In brackets: {}", lambda c: f"[{c}]", _BRACKETS, _same, _word),
    "reverse_upper": Family(
        "Reverse, then upper case: {}", lambda c: c[::-1].upper(), _UPPER, lambda c: c[::-1], _word
    ),
    "sort_commas": Family("Sort, then commas: {}", lambda c: ",".join(sorted(c)), _COMMAS, _sorted, _word),
}


def draw_task(family: str, random: Random) -> Task:
    """Draw one task of a family."""
    kind = FAMILIES[family]
    content = kind.draw(random)
    return Task(family, content, kind.ask.format(content), kind.solve(content))


def task_of(prompt: str) -> Task:
    """Return the task that a prompt asks for. Raise ValueError if it is none of this world's."""
    for name, family in FAMILIES.items():
        before, _, after = family.ask.partition("{}")
        if prompt.startswith(before) and prompt.endswith(after) and (content := prompt[len(before) :]):
            return Task(name, content, prompt, family.solve(content))
    raise ValueError(
        f"{prompt[:60]!r} is no task of the generated world, so its checker cannot score answers to it"
    )
