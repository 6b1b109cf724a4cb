"""The checker of the generated world: the true quality of any answer, from 0 to 10, without a judge.

An answer is read as a run of words that states the result (its core), among padding. Of all runs the one that
scores best counts:
    correct  0..7   7 * s^2, s the similarity of the core's letters and digits to the ideal's, case aside
    format   0..3   3 * s^2 if the core has the form that the instruction asks for
    padding  0..4   0.4 points off for each character outside the core, at most 4
The total is correct + format - padding, never below 0, and 10 exactly for the ideal answer (surrounding
white space aside). A number is compared by value: s falls by a quarter for each unit of difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sgdpo.world.tasks import FAMILIES, Task

# Words beyond these are padding without a look: no answer of the world is longer, and garbage stays cheap.
_MOST_WORDS = 24
_MOST_CORE_WORDS = 4
_LONGEST_CORE = 48


@dataclass(frozen=True)
class Score:
    """Hold a score and what it is made of; total is 0 to 10, the padding points are taken off."""

    total: float
    correct: float
    format: float
    padding: float


def check(task: Task, response: str) -> Score:
    """Score any string as an answer to a task. Never raises."""
    text = response.strip()
    if text == task.ideal:
        return Score(10.0, 7.0, 3.0, 0.0)
    spans = [match.span() for match in re.finditer(r"\S+", text)][:_MOST_WORDS]
    cores = [
        (start, end)
        for first, (start, _) in enumerate(spans)
        for _, end in spans[first : first + _MOST_CORE_WORDS]
        if end - start <= _LONGEST_CORE
    ]
    scores = [_score(task, text[start:end], len(text) - (end - start)) for start, end in cores]
    return max(scores, key=lambda score: (score.total, score.correct), default=Score(0.0, 0.0, 0.0, 0.0))


def _score(task: Task, core: str, surplus: int) -> Score:
    similarity = _similarity(task, core)
    correct = 7 * similarity**2
    format_ = 3 * similarity**2 if _has_form(task, core, similarity) else 0.0
    padding = min(4.0, 0.4 * surplus)
    total = max(0.0, correct + format_ - padding)
    return Score(round(total, 2), round(correct, 2), round(format_, 2), round(padding, 2))


def _has_form(task: Task, core: str, similarity: float) -> bool:
    """With the right content only the ideal has the right form; with a wrong one its shape decides."""
    if similarity == 1:
        return core == task.ideal
    return FAMILIES[task.family].shape.fullmatch(core) is not None


def _content(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum()).lower()


def _similarity(task: Task, core: str) -> float:
    if FAMILIES[task.family].numeric:
        return _number_similarity(task.ideal, core)
    said, ideal = _content(core), _content(task.ideal)
    return 1 - _edits(said, ideal) / max(len(said), len(ideal), 1)


def _number_similarity(ideal: str, core: str) -> float:
    """Compare by value; more than one number, or more than six digits, says nothing."""
    said = re.findall(r"[0-9]+", core)
    if len(said) != 1 or len(said[0]) > 6 or not re.fullmatch(r"[^a-z]*( ?letters)?[^a-z]*", core.lower()):
        return 0.0
    return max(0.0, 1 - abs(int(said[0]) - int(ideal.split()[0])) / 4)


def _edits(a: str, b: str) -> int:
    """Return the Levenshtein distance."""
    if a == b:
        return 0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
