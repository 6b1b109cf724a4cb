"""The checker of the generated world: the true quality of any answer, from 0 to 10, without a judge.

An answer is read as a run of words that states the result (its core), among padding. Of all runs the one that
scores best counts; a full stop behind it is padding:
    correct  0..7   7 * s^2, s the similarity of the core's letters and digits to the ideal's, case aside
    format   0..3   3 * s^2 if the core has the form that the instruction asks for
    padding  0..4   0.4 points off for each character outside the core, at most 4
    hedging         what is left above the worth of the worst other answer that stands beside the core
The total is correct + format - padding - hedging, never below 0, and 10 exactly for the ideal answer
(surrounding white space aside). A number is compared by value: s falls by a quarter for each unit of difference.

Another answer is any number where a number is asked for; else a run of words that shares half of its letters
with the ideal, is a part of it or holds it, or is as short as an ideal of two letters. The core said again in
the same form, the task told again and courtesies are padding. So whoever gives several answers gets no more
than for the worst.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from sgdpo.world.tasks import COURTESIES, FAMILIES, Task

# Words beyond these are padding without a look: no answer of the world is longer, and garbage stays cheap.
_MOST_WORDS = 24
_MOST_CORE_WORDS = 4
_LONGEST_CORE = 48
_MOST_RIVAL_WORDS = 200
_COURTEOUS = re.compile(
    r"(?<!\S)(?:"
    + "|".join(re.escape(phrase.strip(" :,.!?")) for phrase in (*COURTESIES, "a", "the", "or"))
    + r")[:,.!?]*(?!\S)",
    re.IGNORECASE,
)
Span = tuple[int, int]


@dataclass(frozen=True)
class Score:
    """Hold a score and what it is made of; total is 0 to 10, the points for padding and hedging are taken off."""

    total: float
    correct: float
    format: float
    padding: float
    hedging: float = 0.0


def check(task: Task, response: str) -> Score:
    """Score any string as an answer to a task. Never raises."""
    text = response.strip()
    best, core = _best(task, text)
    if core is None:
        return best
    least = min((_score(task, text, rival).total for rival in _rivals(task, text, core)), default=best.total)
    hedging = round(max(0.0, best.total - least), 2)
    return replace(best, total=round(best.total - hedging, 2), hedging=hedging)


def grade(task: Task, response: str) -> float:
    """Return what the best of an answer's parts is worth, whatever else it offers: how pairs are made."""
    return _best(task, response.strip())[0].total


def _best(task: Task, text: str) -> tuple[Score, Span | None]:
    """Return the best score and its core, None for the ideal answer and for no answer."""
    if text == task.ideal:
        return Score(10.0, 7.0, 3.0, 0.0), None
    words = [match.span() for match in islice(re.finditer(r"\S+", text), _MOST_WORDS)]
    scores = [(_score(task, text, core), core) for core in _runs(text, words)]
    return max(
        scores,
        key=lambda found: (found[0].total, found[0].correct),
        default=(Score(0.0, 0.0, 0.0, 0.0), None),
    )


def _runs(text: str, words: list[Span]) -> Iterator[Span]:
    """Yield the runs of words that can be a core; one that ends with a full stop also without it."""
    for first, (start, _) in enumerate(words):
        for _, end in words[first : first + _MOST_CORE_WORDS]:
            if end - start <= _LONGEST_CORE:
                yield start, end
                if text[end - 1] == "." and end - 1 > start:
                    yield start, end - 1


def _rivals(task: Task, text: str, core: Span) -> Iterator[Span]:
    """Yield what else the text offers as an answer beside its core."""
    # The task told again is no answer, if it cannot be mistaken for one.
    told = re.search(re.escape(task.content), text) if " " in task.content else None
    taken = [
        core,
        *(match.span() for match in [told, *islice(_COURTEOUS.finditer(text), _MOST_RIVAL_WORDS)] if match),
    ]
    words = [match.span() for match in islice(re.finditer(r"\S+", text), _MOST_RIVAL_WORDS)]
    words = [word for word in words if not _within(word, taken)]
    at = 0
    while at < len(words):
        runs = [run for run in _runs(text, words[at : at + _MOST_CORE_WORDS]) if run[0] == words[at][0]]
        runs = [run for run in runs if _resembles(task, text[slice(*run)]) and not _within(run, taken)]
        if not runs:
            at += 1
            continue
        rival = max(runs, key=lambda run: (_score(task, text, run).total, run[1]))
        if not _repeats(text[slice(*rival)], text[slice(*core)]):
            yield rival
        at += sum(word[0] < rival[1] for word in words[at:])


def _within(run: Span, taken: list[Span]) -> bool:
    return any(run[0] < end and start < run[1] for start, end in taken)


def _resembles(task: Task, words: str) -> bool:
    """Say whether somebody who did not know the answer could take the words for one."""
    if FAMILIES[task.family].numeric:
        return re.match(r"\S*[0-9]", words) is not None
    content, ideal = _content(words), _content(task.ideal)
    if not content or content in (
        _content(task.content),
        _content(FAMILIES[task.family].shortcut(task.content)),
    ):
        return bool(content)
    shared, longest = sum((Counter(content) & Counter(ideal)).values()), max(len(content), len(ideal))
    part = content in ideal or (ideal in content and len(ideal) > 2)
    return part or longest <= 2 or 2 * shared >= longest


def _repeats(words: str, core: str) -> bool:
    """Say whether words are the core, once or several times over."""
    said, once = (text.strip(".,:;!?=/").split() for text in (words, core))
    return bool(once) and once * (len(said) // len(once)) == said


def _score(task: Task, text: str, span: Span) -> Score:
    core, surplus = text[slice(*span)], len(text) - (span[1] - span[0])
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
