"""Draw instructions: a task on an everyday topic, and two or three constraints that go together.

The topic alone, by its hash, decides whether an instruction is held out, so that no model is ever evaluated on a
topic that it met in training, under this seed or another. Every kind of constraint is asked for about equally often.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from sgdpo.constraints.kinds import Constraint, ConstraintKind
from sgdpo.constraints.text import words
from sgdpo.store import hash_json, hash_text

TOPICS = Path(__file__).with_name("topics.txt")
TASKS = (
    "Write a short text about {}.",
    "Explain {} to a child.",
    "Give advice to somebody who is new to {}.",
    "Tell a friend about {}.",
    "Write a note to a neighbour about {}.",
    "Say what people like about {}.",
    "Say what can go wrong with {}.",
    "Describe a day that has to do with {}.",
    "Write an announcement for an evening about {}.",
    "Answer somebody who asks you about {}.",
)
# One topic in five is held out.
HELD_OUT_FIFTH = 5
# Words of a topic that say nothing of it.
SMALL = frozenset(
    ["a", "after", "an", "and", "around", "at", "before", "by", "for", "from", "in", "new", "of", "on", "that", "the",
     "to", "up", "who", "with", "without"]
)  # fmt: skip
_TRIES = 1000


@dataclass(frozen=True)
class Instruction:
    """Hold one instruction; its text is the prompt, with a sentence for each constraint."""

    topic: str
    prompt: str
    constraints: tuple[Constraint, ...]

    @property
    def instruction_id(self) -> str:
        """Return its name, the same wherever it is drawn."""
        return hash_json(self.prompt, 16)

    @property
    def stems(self) -> list[str]:
        """Return the beginnings of the topic's words by which an answer is known to be about it."""
        return [word[: max(4, len(word) - 3)] for word in words(self.topic) if word not in SMALL]

    def row(self) -> dict[str, Any]:
        """Return the instruction as a data set's row, from which it can be read again."""
        constraints = [{"kind": c.kind, "arguments": dict(c.arguments)} for c in self.constraints]
        return {"prompt": self.prompt, "topic": self.topic, "constraints": constraints}


def instruction_of(row: Mapping[str, Any], kinds: Mapping[str, ConstraintKind]) -> Instruction:
    """Read an instruction out of a row. Raise ValueError if it is none, or asks for a kind that is not there."""
    try:
        constraints = tuple(Constraint(c["kind"], c["arguments"]) for c in row["constraints"])
        found = Instruction(row["topic"], row["prompt"], constraints)
        unknown = [c.kind for c in constraints if c.kind not in kinds]
    except (KeyError, TypeError):
        raise ValueError(
            f"a row with the columns {', '.join(row)} is no instruction: the checker needs prompt, topic and "
            "constraints, as data=constraints gives them; score other prompts with a judge or a reward model"
        ) from None
    if unknown or not constraints:
        raise ValueError(
            f"an instruction asks for {unknown or 'nothing'}; kinds of constraint: {', '.join(kinds)}"
        )
    return found


@cache
def topics(*, held_out: bool) -> tuple[str, ...]:
    """Return the topics of one side, in their file's order."""
    return tuple(topic for topic in TOPICS.read_text("utf-8").splitlines() if _is_held_out(topic) == held_out)


def _is_held_out(topic: str) -> bool:
    return int(hash_text(topic, 2), 16) % HELD_OUT_FIFTH == 0


def draw_instructions(
    kinds: Mapping[str, ConstraintKind], count: int, *, combined: Sequence[int], seed: int, held_out: bool
) -> Iterator[Instruction]:
    """Yield different instructions. combined: how many constraints each has, the least and the most.

    Raises ValueError if the kinds do not make so many.
    """
    random = Random(f"{seed}/instructions/{held_out}")
    deck: list[str] = []
    seen: set[str] = set()
    for _ in range(count):
        for _ in range(_TRIES):
            made = _draw(kinds, deck, random.randint(*combined), random, topics(held_out=held_out))
            if made is not None and made.prompt not in seen:
                break
        else:
            raise ValueError(
                f"{len(kinds)} kinds of constraint, {combined[0]} to {combined[1]} together, make only {len(seen)} "
                f"different instructions, not {count}: ask for fewer, or allow more kinds (data.kinds)"
            )
        seen.add(made.prompt)
        yield made


def _draw(
    kinds: Mapping[str, ConstraintKind], deck: list[str], size: int, random: Random, about: Sequence[str]
) -> Instruction | None:
    """Take kinds that go together from the deck, which is shuffled anew when it runs low; None if none do."""
    if len(deck) <= 2 * size:
        fresh = list(kinds)
        random.shuffle(fresh)
        deck[:0] = fresh  # what is left over comes first
    chosen: list[ConstraintKind] = []
    for name in reversed(deck):
        if len(chosen) < size and not any(kinds[name].aspects & other.aspects for other in chosen):
            chosen.append(kinds[name])
    for kind in chosen:
        deck.remove(kind.name)
    if len(chosen) < size:
        return None
    random.shuffle(chosen)
    topic = random.choice(about)
    constraints = tuple(kind.one(random) for kind in chosen)
    prompt = " ".join([random.choice(TASKS).format(topic), *(c.text for c in constraints)])
    made = Instruction(topic, prompt, constraints)
    return None if forbids_itself(made, kinds) else made


def forbids_itself(instruction: Instruction, kinds: Mapping[str, ConstraintKind]) -> bool:
    """Say whether one constraint forbids each word of the topic, or what another one asks for."""
    for one in instruction.constraints:
        kind = kinds[one.kind]
        if "avoid" not in kind.aspects or "topic" in kind.aspects:
            continue
        asked = [
            str(item)
            for other in instruction.constraints
            for value in other.arguments.values()
            for item in (value if isinstance(value, list) else [value])
            if other is not one
        ]
        kept = [kind.holds(said, **one.arguments) for said in instruction.stems + asked]
        named = len(instruction.stems)
        if not any(kept[:named]) or not all(kept[named:]):
            return True
    return False
