"""The long genre of the generated world: lists, tables, requests of several parts and restated constraints.

Answers take 20 to 100 characters, so that a share of their tokens means what it says. An answer is scored 0 to 10:
    correct  0..7   7 * s^2, s the share of words (letters or digits in a row) that are the ideal's, in its order
    format   0..3   3 * s^2, s the same of the answer's form: its marks, spaces, breaks, and the case of its letters
    padding  0..4   0.1 points off for each character beyond the ideal's length
The total is correct + format - padding, within 0 and 9.9, and 10 for the ideal alone (surrounding white space aside).
A share is the longest common subsequence over the longer of the two, so what is said twice, or beside, counts against.
"""

import re
from collections.abc import Callable
from functools import partial
from random import Random

from sgdpo.overlap import similarity
from sgdpo.world import corruptions
from sgdpo.world.checker import Score
from sgdpo.world.tasks import LETTERS, VOWELS, Genre, Task

MARKS = "\n|()"
_MOST_CHARACTERS = 1000  # beyond it an answer is not looked at: garbage stays cheap
_LESS_THAN_IDEAL = 9.9


def check(task: Task, response: str) -> Score:
    """Score any string as an answer to a task. Never raises."""
    text, ideal = response.strip(), task.ideal
    if text == ideal:
        return Score(10.0, 7.0, 3.0, 0.0)
    if not text or len(text) > _MOST_CHARACTERS:
        return Score(0.0, 0.0, 0.0, 0.0)
    correct = 7 * similarity(_words(text), _words(ideal)) ** 2
    form = 3 * similarity(_form(text), _form(ideal)) ** 2
    padding = min(4.0, 0.1 * max(0, len(text) - len(ideal)))
    total = min(max(0.0, correct + form - padding), _LESS_THAN_IDEAL)
    return Score(round(total, 2), round(correct, 2), round(form, 2), round(padding, 2))


def grade(task: Task, response: str) -> float:
    """Return an answer's score: how pairs are made."""
    return check(task, response).total


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def _form(text: str) -> str:
    return re.sub(r"[0-9]+", "0", re.sub(r"[A-Z]+", "A", re.sub(r"[a-z]+", "a", text)))


# ---- what is asked --------------------------------------------------------------------------------------------


def _vocabulary(count: int, seed: int) -> list[str]:
    """Return the words of the genre: as in a language there are few, and a task is a new sequence of them."""
    random, found = Random(seed), dict[str, None]()
    while len(found) < count:
        found["".join(random.choices(LETTERS, k=random.randint(3, 5)))] = None
    return list(found)


WORDS = _vocabulary(60, 1)


def _several(least: int, most: int, step: int = 1) -> Callable[[Random], str]:
    return lambda random: " ".join(random.choices(WORDS, k=random.randrange(least, most + 1, step)))


def _lines(make: Callable[[int, str], str], content: str) -> str:
    return "\n".join(make(number, word) for number, word in enumerate(content.split(), 1))


def _table(content: str) -> str:
    return "word | letters\n" + _lines(lambda _, word: f"{word} | {len(word)}", content)


def _from_the_last(content: str) -> str:
    return _lines(lambda number, word: f"{number}. {word}", " ".join(reversed(content.split())))


def _parts(content: str) -> str:
    one, two = content.split()
    return f"a) {two} {one}\nb) {content.upper()}\nc) {len(one) + len(two)} letters"


def _pairs(content: str) -> str:
    words = content.split()
    return "\n".join(f"({one}, {two})" for one, two in zip(words[::2], words[1::2], strict=True))


def _without_vowels(content: str) -> str:
    left = ("".join(letter for letter in word if letter not in VOWELS) or "-" for word in content.split())
    return f"Without vowels: {', '.join(left)}"


def _count(content: str) -> str:
    start, step = map(int, content.split(" by "))
    return f"From {start} by {step}: {', '.join(str(start + step * k) for k in range(6))}"


def _steps(content: str) -> str:
    total, *rest = map(int, content.split(" + "))
    lines = []
    for number in rest:
        lines.append(f"{total} + {number} = {total + number}")
        total += number
    return "\n".join(lines)


def _twice(content: str) -> str:
    return "Each twice: " + ", ".join(f"{word} {word}" for word in content.split())


def _sum(random: Random) -> str:
    return " + ".join(map(str, [random.randint(10, 60), *(random.randint(1, 9) for _ in range(3))]))


# name: (what is asked, the perfect answer, what it is about)
FAMILIES: dict[str, tuple[str, Callable[[str], str], Callable[[Random], str]]] = {
    "capitals": ("List in capitals: {}", partial(_lines, lambda n, w: f"{n}. {w.upper()}"), _several(4, 7)),
    "backwards": ("List from the last: {}", _from_the_last, _several(4, 7)),
    "table": ("Table of words and letters: {}", _table, _several(3, 6)),
    "ends": ("First and last letters: {}", partial(_lines, lambda n, w: f"{w}: {w[0]}, {w[-1]}"), _several(3, 6)),
    "spell": ("Spell with dashes, one a line: {}", partial(_lines, lambda n, w: "-".join(w)), _several(3, 6)),
    "parts": ("a) turn b) capitals c) count: {}", _parts, _several(2, 2)),
    "pairs": ("Pairs in brackets: {}", _pairs, _several(4, 8, step=2)),
    "bullets": ("Bullets, then how many: {}",
                lambda c: _lines(lambda n, w: f"- {w}", c) + f"\n{len(c.split())} words", _several(3, 6)),
    "vowels": ("Say that vowels are left out, and do: {}", _without_vowels, _several(3, 7)),
    "count": ("Count six, say from where: {}", _count, lambda r: f"{r.randint(2, 70)} by {r.randint(2, 9)}"),
    "steps": ("Add step by step: {}", _steps, _sum),
    "twice": ("Each word twice, and say so: {}", _twice, _several(3, 6)),
}  # fmt: skip


def draw(family: str, random: Random) -> Task:
    """Draw one task of a family."""
    ask, solve, content_of = FAMILIES[family]
    content = content_of(random)
    return Task(family, content, ask.format(content), solve(content))


# ---- how answers go wrong, beside what goes wrong in short ones -------------------------------------------------


def _items(answer: str) -> tuple[str, list[str]]:
    """Return what separates an answer's items, and the items."""
    between = "\n" if "\n" in answer else ", "
    return between, answer.split(between)


def leave_out(answer: str, task: Task, random: Random) -> str:
    """Leave one item out."""
    between, items = _items(answer)
    items.pop(random.randrange(len(items)))
    return between.join(items)


def repeat(answer: str, task: Task, random: Random) -> str:
    """Give one item twice."""
    between, items = _items(answer)
    at = random.randrange(len(items))
    return between.join([*items[: at + 1], *items[at:]])


def exchange(answer: str, task: Task, random: Random) -> str:
    """Give two neighbouring items in the wrong order."""
    between, items = _items(answer)
    at = random.randrange(max(1, len(items) - 1))
    return between.join([*items[:at], *items[at : at + 2][::-1], *items[at + 2 :]])


def stop(answer: str, task: Task, random: Random) -> str:
    """Stop after some of the items."""
    between, items = _items(answer)
    return between.join(items[: random.randint(1, max(1, len(items) - 1))])


def confuse(answer: str, task: Task, random: Random) -> str:
    """Put a word of the instruction in the place of one of the answer."""
    words = list(re.finditer(r"[A-Za-z0-9]+", answer))
    if not words:
        return answer
    at = random.choice(words)
    return answer[: at.start()] + random.choice(task.content.split()) + answer[at.end() :]


def reform(answer: str, task: Task, random: Random) -> str:
    """Keep what is said and lose how: on one line, with other marks, or in the other case."""
    return random.choice(
        (answer.replace("\n", ", "), answer.replace(". ", ") ").replace(": ", " - "), answer.swapcase())
    )


LONG = Genre(
    families=tuple(FAMILIES),
    draw=draw,
    check=check,
    grade=grade,
    corruptions=(
        corruptions.swap, corruptions.replace, corruptions.drop, corruptions.cut, corruptions.opening,
        corruptions.closing, leave_out, repeat, exchange, stop, confuse, reform,
    ),
    perfect=0.3,
    equal_length=0.1,
    further=0.5,
    most=4,
)  # fmt: skip
