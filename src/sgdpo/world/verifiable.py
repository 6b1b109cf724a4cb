"""The generated world of `data=verifiable`: pairs and demonstrations of graded quality.

Everything is a function of the WorldConfig: the same settings give the same rows on every machine. Training
rows draw from tasks that are not held out, test rows and generation prompts from held-out ones (`tasks.py`).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Annotated, Any, get_type_hints

from sgdpo.values import Range, schema_errors
from sgdpo.world.checker import grade
from sgdpo.world.tasks import CLOSINGS, FAMILIES, LETTERS, OPENINGS, Task, draw_task

# Every character that a prompt or an answer of the world can hold: what a tokenizer for it must know.
ALPHABET = string.ascii_letters + string.digits + " +,.:!?[]=-"

# How often a candidate answer of a pair is perfect before both are graded.
_PERFECT = 0.6
# How often the two answers of a pair are of equal length (typing errors keep the length).
_EQUAL_LENGTH = 0.25
_TRIES = 60


@dataclass(frozen=True)
class World:
    """Hold the generated rows, in the schema of real sets.

    train, test: {prompt, chosen, rejected, score_chosen, score_rejected}, scores 0 to 10 by the checker.
    sft, sft_test: {messages}, imperfect demonstrations.
    """

    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    sft: list[dict[str, Any]]
    sft_test: list[dict[str, Any]]


@dataclass(frozen=True)
class WorldConfig:
    """Hold the settings of the world; conf/data/verifiable.yaml says what each means."""

    seed: Annotated[int, Range("[0, 4294967296)")] = 0
    pairs: Annotated[int, Range("[0, 10000000]")] = 0
    demonstrations: Annotated[int, Range("[0, 10000000]")] = 0
    test_pairs: Annotated[int, Range("[0, 10000000]")] = 0
    prompts: Annotated[int, Range("[0, 10000000]")] = 0
    demonstration_noise: Annotated[float, Range("[0, 1]")] = 0.0
    length_bias: Annotated[float, Range("[0, 1]")] = 0.5
    ties: Annotated[float, Range("[0, 1]")] = 0.0
    identical: Annotated[float, Range("[0, 1]")] = 0.0
    empty: Annotated[float, Range("[0, 1]")] = 0.0


def world_of(settings: Mapping[str, Any]) -> WorldConfig:
    """Return the world that settings describe. Raises ValueError with all that is wrong with them."""
    hints = get_type_hints(WorldConfig, include_extras=True)
    errors = [
        f"data.world.{key} is not a setting; it has {sorted(hints)}" for key in settings if key not in hints
    ]
    world = WorldConfig(**{key: value for key, value in settings.items() if key in hints})
    if errors := errors + world_errors(world):
        raise ValueError("; ".join(errors))
    return world


def make_world(world: WorldConfig) -> World:
    """Generate the whole world. Raises ValueError with all that is wrong with its settings."""
    if errors := world_errors(world):
        raise ValueError("; ".join(errors))
    return World(
        train=list(make_pairs(world, held_out=False)),
        test=list(make_pairs(world, held_out=True)),
        sft=list(make_demonstrations(world, held_out=False)),
        sft_test=list(make_demonstrations(world, held_out=True)),
    )


def world_errors(world: WorldConfig) -> list[str]:
    """List what is wrong with a world's settings, as sentences with advice."""
    errors = list(schema_errors(world, "data.world."))
    shares = (world.ties, world.identical, world.empty)
    if all(isinstance(share, (int, float)) for share in shares) and sum(shares) > 1:
        errors.append(
            "data.world.ties, identical and empty are shares of one set; their sum must not exceed 1"
        )
    return errors


def held_out_prompts(world: WorldConfig) -> list[Task]:
    """Return `world.prompts` different held-out tasks, the families in turn: prompts for generation.

    A family that runs out of different tasks (addition has about 150) gives its place to the next.
    """
    random = Random(f"{world.seed}/prompts")
    found: dict[str, Task] = {}
    families = cycle(FAMILIES)
    while len(found) < world.prompts:
        family = next(families)
        draws = (_draw(family, random, held_out=True) for _ in range(_TRIES))
        if fresh := next((task for task in draws if task.task_id not in found), None):
            found[fresh.task_id] = fresh
    return list(found.values())


def make_demonstrations(world: WorldConfig, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Yield SFT rows {messages}; a share of demonstration_noise is corrupted, as people's are."""
    random = Random(f"{world.seed}/demonstrations/{held_out}")
    for task in _tasks(world.test_pairs if held_out else world.demonstrations, random, held_out):
        answer = corrupt(task, random) if random.random() < world.demonstration_noise else task.ideal
        yield {
            "messages": [
                {"role": "user", "content": task.prompt},
                {"role": "assistant", "content": answer},
            ]
        }


def make_pairs(world: WorldConfig, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Yield preference rows; chosen scores higher, but for the shares of ties and identical pairs."""
    random = Random(f"{world.seed}/pairs/{held_out}")
    for task in _tasks(world.test_pairs if held_out else world.pairs, random, held_out):
        fate = random.random()
        if fate < world.identical:
            yield _row(task, *[_candidate(task, random)] * 2)
        elif fate < world.identical + world.empty:
            yield _row(task, task.ideal, "")
        elif fate < world.identical + world.empty + world.ties:
            yield _search(task, random, _tie)
        else:
            unequal, longer = random.random() >= _EQUAL_LENGTH, random.random() < world.length_bias
            want = int(longer) * 2 - 1 if unequal else 0
            yield _search(task, random, lambda task, random, want=want: _graded_pair(task, random, want))


def _row(task: Task, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": task.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": grade(task, chosen),
        "score_rejected": grade(task, rejected),
    }


def _search(
    task: Task, random: Random, make: Callable[[Task, Random], dict[str, Any] | None]
) -> dict[str, Any]:
    """Return the first row that `make` finds for the task, else for other tasks of the same partition."""
    while True:
        for _ in range(_TRIES):
            if row := make(task, random):
                return row
        task = _draw(random.choice(list(FAMILIES)), random, task.held_out)


def _graded_pair(task: Task, random: Random, want: int) -> dict[str, Any] | None:
    """Make a pair whose chosen scores higher and is longer (want 1), shorter (-1) or as long (0); or None."""
    one, other = _candidate(task, random), _candidate(task, random)
    if one == other or abs(want) != (len(one) != len(other)):
        return None
    if (len(one) - len(other)) * want < 0:
        one, other = other, one
    row = _row(task, one, other)
    return row if row["score_chosen"] > row["score_rejected"] else None


def _tie(task: Task, random: Random) -> dict[str, Any] | None:
    """Make a pair of different answers of the same score, or None."""
    row = _row(task, _candidate(task, random), _candidate(task, random))
    return row if row["score_chosen"] == row["score_rejected"] and row["chosen"] != row["rejected"] else None


def _candidate(task: Task, random: Random) -> str:
    """Return the ideal answer, or a corruption of it."""
    return task.ideal if random.random() < _PERFECT else corrupt(task, random)


def _tasks(count: int, random: Random, held_out: bool) -> Iterator[Task]:
    """Yield tasks, every family equally often, in a shuffled order."""
    names = list(FAMILIES) * (count // len(FAMILIES) + 1)
    random.shuffle(names)
    for name in names[:count]:
        yield _draw(name, random, held_out)


def _draw(family: str, random: Random, held_out: bool) -> Task:
    while True:
        task = draw_task(family, random)
        if task.held_out == held_out:
            return task


def corrupt(task: Task, random: Random) -> str:
    """Return a wrong, ill-formed, cut or padded answer, never empty: it always scores below 10.

    One corruption, or two on top of each other (two times in five): quality is graded, not right or wrong.
    """
    while True:
        answer = task.ideal
        for change in random.sample(_CORRUPTIONS, k=2 if random.random() < 0.4 else 1):
            answer = change(answer, task, random).strip() or task.ideal
        if answer != task.ideal:
            return answer


def _swap(answer: str, task: Task, random: Random) -> str:
    """Exchange two neighbouring characters."""
    at = random.randrange(max(1, len(answer) - 1))
    return answer[:at] + answer[at : at + 2][::-1] + answer[at + 2 :]


def _replace(answer: str, task: Task, random: Random) -> str:
    """Put another letter or digit in the place of one."""
    at = random.randrange(len(answer))
    pool = string.digits if answer[at].isdigit() else LETTERS.upper() if answer[at].isupper() else LETTERS
    return answer[:at] + random.choice(pool) + answer[at + 1 :]


def _cut(answer: str, task: Task, random: Random) -> str:
    """Stop early."""
    return answer[: random.randint(1, max(1, len(answer) - 1))].strip()


def _drop(answer: str, task: Task, random: Random) -> str:
    """Leave one character out."""
    at = random.randrange(len(answer))
    return answer[:at] + answer[at + 1 :]


def _shortcut(answer: str, task: Task, random: Random) -> str:
    """Give the tempting wrong answer: the input, or half of what was asked."""
    return FAMILIES[task.family].shortcut(task.content)


def _reform(answer: str, task: Task, random: Random) -> str:
    """Keep what is said and lose how: the other case, or separators that nobody asked for."""
    return random.choice((answer.swapcase(), "-".join(answer.replace(" ", "")), f"[{answer}]"))


def _open(answer: str, task: Task, random: Random) -> str:
    """Talk before the answer."""
    return random.choice(OPENINGS) + answer


def _close(answer: str, task: Task, random: Random) -> str:
    """Talk after the answer."""
    return answer + random.choice(CLOSINGS)


def _again(answer: str, task: Task, random: Random) -> str:
    """Say the answer once more."""
    return f"{answer} {answer}"


_CORRUPTIONS = (_swap, _replace, _cut, _drop, _shortcut, _reform, _open, _close, _again)
