"""Give the rows of the generated world."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sgdpo import overlap
from sgdpo.data.rows import Rows
from sgdpo.source import module_texts
from sgdpo.store import hash_json
from sgdpo.world import checker, corruptions, long, tasks, verifiable
from sgdpo.world.verifiable import make_demonstrations, make_pairs, world_of


def read(phase: str, split: str, *, world: dict[str, Any]) -> Rows | None:
    """Return the rows of a split; they are made as they are read."""
    settings = world_of(world)
    held_out = split == "test"
    make = make_pairs if phase == "preference" else make_demonstrations
    train_count = settings.pairs if phase == "preference" else settings.demonstrations
    count = settings.test_pairs if held_out else train_count
    if count == 0:
        if held_out:
            return None
        raise ValueError("the generated world is empty; raise data.world.pairs or data.world.demonstrations")

    def key(memory: Path | None = None) -> str:
        return hash_json([asdict(settings), phase, split, *sources()])

    return Rows(
        name=f"the generated {split} set",
        read=partial(make, settings, held_out=held_out),
        count=lambda: count,
        key=key,
    )


def sources() -> list[str]:
    """Return the text of what makes and scores the world: a changed one meets no old cache, and no old result."""
    return module_texts(tasks, checker, corruptions, long, overlap, verifiable)
