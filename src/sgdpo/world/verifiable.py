"""The generated worlds of `data=verifiable` and `data=verifiable_long`: pairs and demonstrations of graded quality.

Everything is a function of the WorldConfig: the same settings give the same rows on every machine. Training
rows draw from tasks that are not held out, test rows and generation prompts from held-out ones (`tasks.py`).
"""

import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from random import Random
from typing import Annotated, Any, get_type_hints

from sgdpo.values import OneOf, Range, schema_errors
from sgdpo.world import checker, corruptions, long
from sgdpo.world.tasks import FAMILIES, Genre, Task, draw_task

# Every character that a prompt or an answer of the world can hold: what a tokenizer for it must know.
ALPHABET = string.ascii_letters + string.digits + " +,.:!?[]=-" + long.MARKS

GENRES = {
    "short": Genre(
        families=tuple(FAMILIES),
        draw=draw_task,
        check=checker.check,
        grade=checker.grade,
        corruptions=corruptions.SHORT,
        perfect=0.6,
        equal_length=0.25,  # typing errors keep the length
        further=0.4,
        most=2,
    ),
    "long": long.LONG,
}
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

    answers: Annotated[str, OneOf(*GENRES)] = "short"
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
    label_noise: Annotated[float, Range("[0, 1]")] = 0.0

    @property
    def genre(self) -> Genre:
        return GENRES[self.answers]


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
    families = cycle(world.genre.families)
    while len(found) < world.prompts:
        family = next(families)
        draws = (_draw(world.genre, family, random, held_out=True) for _ in range(_TRIES))
        if fresh := next((task for task in draws if task.task_id not in found), None):
            found[fresh.task_id] = fresh
    return list(found.values())


def make_demonstrations(world: WorldConfig, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Yield SFT rows {messages}; a share of demonstration_noise is corrupted, as people's are."""
    random, genre = Random(f"{world.seed}/demonstrations/{held_out}"), world.genre
    for task in _tasks(genre, world.test_pairs if held_out else world.demonstrations, random, held_out):
        answer = corrupt(task, random, genre) if random.random() < world.demonstration_noise else task.ideal
        yield {
            "messages": [
                {"role": "user", "content": task.prompt},
                {"role": "assistant", "content": answer},
            ]
        }


def make_pairs(world: WorldConfig, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Yield preference rows; chosen scores higher, but for the shares of ties and identical pairs.

    A share of label_noise of the training rows has its answers exchanged, each with its true score; those of a smaller
    share are among those of a larger one.
    """
    labels = Random(f"{world.seed}/labels")
    for row in _true_pairs(world, held_out):
        noisy = labels.random() < world.label_noise and not held_out
        yield _exchanged(row) if noisy else row


def _exchanged(row: dict[str, Any]) -> dict[str, Any]:
    chosen, score = row["chosen"], row["score_chosen"]
    other = {"chosen": row["rejected"], "rejected": chosen}
    return {**row, **other, "score_chosen": row["score_rejected"], "score_rejected": score}


def _true_pairs(world: WorldConfig, held_out: bool) -> Iterator[dict[str, Any]]:
    random, genre = Random(f"{world.seed}/pairs/{held_out}"), world.genre
    for task in _tasks(genre, world.test_pairs if held_out else world.pairs, random, held_out):
        fate = random.random()
        if fate < world.identical:
            yield _row(genre, task, *[_candidate(genre, task, random)] * 2)
        elif fate < world.identical + world.empty:
            yield _row(genre, task, task.ideal, "")
        elif fate < world.identical + world.empty + world.ties:
            yield _search(genre, task, random, _tie)
        else:
            unequal, longer = random.random() >= genre.equal_length, random.random() < world.length_bias
            yield _search(
                genre, task, random, partial(_graded_pair, want=int(longer) * 2 - 1 if unequal else 0)
            )


def _row(genre: Genre, task: Task, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": task.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": genre.grade(task, chosen),
        "score_rejected": genre.grade(task, rejected),
    }


def _search(
    genre: Genre, task: Task, random: Random, make: Callable[[Genre, Task, Random], dict[str, Any] | None]
) -> dict[str, Any]:
    """Return the first row that `make` finds for the task, else for other tasks of the same partition."""
    while True:
        for _ in range(_TRIES):
            if row := make(genre, task, random):
                return row
        task = _draw(genre, random.choice(list(genre.families)), random, task.held_out)


def _graded_pair(genre: Genre, task: Task, random: Random, want: int) -> dict[str, Any] | None:
    """Make a pair whose chosen scores higher and is longer (want 1), shorter (-1) or as long (0); or None."""
    one, other = _candidate(genre, task, random), _candidate(genre, task, random)
    if one == other or abs(want) != (len(one) != len(other)):
        return None
    if (len(one) - len(other)) * want < 0:
        one, other = other, one
    row = _row(genre, task, one, other)
    return row if row["score_chosen"] > row["score_rejected"] else None


def _tie(genre: Genre, task: Task, random: Random) -> dict[str, Any] | None:
    """Make a pair of different answers of the same score, or None."""
    row = _row(genre, task, _candidate(genre, task, random), _candidate(genre, task, random))
    return row if row["score_chosen"] == row["score_rejected"] and row["chosen"] != row["rejected"] else None


def _candidate(genre: Genre, task: Task, random: Random) -> str:
    """Return the ideal answer, or a corruption of it."""
    return task.ideal if random.random() < genre.perfect else corrupt(task, random, genre)


def _tasks(genre: Genre, count: int, random: Random, held_out: bool) -> Iterator[Task]:
    """Yield tasks, every family equally often, in a shuffled order."""
    names = list(genre.families) * (count // len(genre.families) + 1)
    random.shuffle(names)
    for name in names[:count]:
        yield _draw(genre, name, random, held_out)


def _draw(genre: Genre, family: str, random: Random, held_out: bool) -> Task:
    while True:
        task = genre.draw(family, random)
        if task.held_out == held_out:
            return task


def corrupt(task: Task, random: Random, genre: Genre = GENRES["short"]) -> str:
    """Return a wrong, ill-formed, cut or padded answer, never empty: it always scores below 10.

    One corruption, or several on top of each other: quality is graded, not right or wrong.
    """
    while True:
        answer, count = task.ideal, 1
        while count < genre.most and random.random() < genre.further:
            count += 1
        for change in random.sample(genre.corruptions, k=count):
            answer = change(answer, task, random).strip() or task.ideal
        if answer != task.ideal:
            return answer
