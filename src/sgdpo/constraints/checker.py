"""Score any answer to an instruction without a judge: the share of its constraints that are met, less what is empty.

    met        the share of the constraints that the answer keeps, 0 to 1
    loops      what it says again: the share of runs of three words that came before, above a fifth, doubled, at most 1
    empty      1 if there are no words, or half of it is the instruction said again; else 1/2 if it names nothing of
               the topic (where a constraint does not ask for another language); else 0
The score is met * (1 - loops) * (1 - empty): a loop or empty talk gains nothing by keeping the constraints.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sgdpo.constraints import text
from sgdpo.constraints.instructions import Instruction
from sgdpo.constraints.kinds import ConstraintKind

# Lists and short answers say some words again without being loops.
ALLOWED_REPETITION = 0.2
MOST_ECHO = 0.5


@dataclass(frozen=True)
class Score:
    """Hold a score, 0 to 1, and what it is made of; repetition is the whole share, kept says which constraints are."""

    total: float
    met: float
    loops: float
    empty: float
    repetition: float
    kept: tuple[bool, ...]


def check(instruction: Instruction, answer: str, kinds: Mapping[str, ConstraintKind]) -> Score:
    """Score any string as an answer to an instruction. Never raises."""
    kept = tuple(kinds[c.kind].holds(answer, **c.arguments) for c in instruction.constraints)
    met, repetition = sum(kept) / len(kept), text.repetition(answer)
    loops = min(1.0, max(0.0, 2 * (repetition - ALLOWED_REPETITION)))
    free = any("topic" in kinds[c.kind].aspects for c in instruction.constraints)
    empty = _empty(instruction, answer, free)
    total = met * (1 - loops) * (1 - empty)
    return Score(round(total, 4), met, round(loops, 4), empty, round(repetition, 4), kept)


def _empty(instruction: Instruction, answer: str, free: bool) -> float:
    said = text.words(answer)
    if not said or text.echo(answer, instruction.prompt) >= MOST_ECHO:
        return 1.0
    named = any(word.startswith(stem) for word in said for stem in instruction.stems)
    return 0.0 if free or named else 0.5
