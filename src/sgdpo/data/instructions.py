"""Give instructions that are to be answered, and the pairs that scripts/sample.py made of a model's own answers."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from sgdpo.constraints import checker, instructions, text
from sgdpo.constraints.instructions import draw_instructions
from sgdpo.constraints.kinds import load_kinds
from sgdpo.data.files import read as read_files
from sgdpo.data.rows import Rows
from sgdpo.source import module_texts
from sgdpo.store import hash_json
from sgdpo.values import Range

Count = Annotated[int, Range("[0, 1000000]")]
PAIRS = "pairs.json"  # what a folder of sampled pairs says of them


def sampled(
    phase: str, split: str, *, folder: str | None = None, world: dict[str, Any] | None = None
) -> Rows | None:
    """Return the pairs of one split that scripts/sample.py wrote into a folder; None if it made none of it.

    world: nothing is read from it; it says to whoever evaluates the run which generated world the prompts are of.
    """
    if folder is None or not (Path(folder).expanduser() / PAIRS).is_file():
        there = "is not set" if folder is None else f"{folder} holds no {PAIRS}"
        raise ValueError(
            f"data.folder: {there}; make pairs of a model's own answers first: python scripts/sample.py "
            "policy=smollm2_135m data=constraints, then data=sampled data.folder=outputs/sampled/..."
        )
    file = Path(folder).expanduser() / f"{split}.jsonl"
    return read_files(phase, split, **{split: str(file)}) if file.is_file() else None


def read(
    phase: str,
    split: str,
    *,
    seed: Annotated[int, Range("[0, 4294967296)")] = 0,
    instructions: Count = 4000,
    test_instructions: Count = 400,
    least: Annotated[int, Range("[1, 10]")] = 2,
    most: Annotated[int, Range("[1, 10]")] = 3,
    kinds: list[str] | None = None,
    folder: str | None = None,
) -> Rows | None:
    """Return the instructions of a split (phase "prompts"); for training the pairs that were sampled for them."""
    if phase != "prompts":
        return sampled(phase, split, folder=folder)
    if least > most:
        raise ValueError(f"data.least ({least}) must not exceed data.most ({most})")
    count = instructions if split == "train" else test_instructions
    if not count:
        return None
    known, held_out = load_kinds(kinds), split == "test"
    drawn = partial(draw_instructions, known, count, combined=(least, most), seed=seed, held_out=held_out)
    return Rows(
        name=f"the {split} instructions",
        read=lambda: (instruction.row() for instruction in drawn()),
        count=lambda: count,
        key=lambda memory=None: hash_json(
            [seed, count, least, most, split, *sources(), *[k.source for k in known.values()]]
        ),
    )


def sources() -> list[Any]:
    """Return the text of what draws and scores instructions, the kinds' own apart: a changed one meets no old cache."""
    return [*module_texts(instructions, checker, text), instructions.TOPICS.read_text("utf-8")]
