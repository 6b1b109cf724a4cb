"""MT-Bench: two turns, single-answer grading from 1 to 10, as FastChat's judge asks for it.

Departures from FastChat: the verdict is the *last* `[[x]]` of a judgment, not the first (an answer's own
rating may be quoted before it); a score outside 1 to 10 is unparsable, not a score; unparsable judgments are
counted, and more than 5 % of them are refused; markers in answers are broken and counted (`guard.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lab.answers.generate import Generator, generate
from lab.answers.prompts import Prompt, Sample, Sampling
from lab.benchmarks.alpaca_eval import refuse_unparsable
from lab.benchmarks.mt_files import PROMPT_NAMES, Bench, Question
from lab.benchmarks.statistics import RESAMPLES
from lab.judging.guard import fill, guard, markers_of
from lab.judging.judges import Judge, ask_all
from lab.judging.requests import JudgeRequest
from lab.serving.reply import Reply

# FastChat's temperature_config; categories that are not named get 0.7.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
JUDGE_TOKENS = 2048
# The form of a reply, for judges that can be held to one; a small model would not keep to it by itself.
GRAMMAR = 'root ::= "Rating: [[" ("10" | [1-9]) "]]"'
_VERDICT = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_BACKUP = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*\]")


@dataclass(frozen=True)
class Grading:
    """Hold one question to the judge: which turn of which question, and what the guard found."""

    question: Question
    turn: int
    prompt_name: str
    request: JudgeRequest
    marked: bool
    demands: bool


def answer_questions(
    generator: Generator, questions: Sequence[Question], sampling: Sampling, cache: Path
) -> list[tuple[Sample, Sample]]:
    """Answer both turns of each question; the second sees the first answer. Temperatures go by category."""
    opening = {
        question: Prompt.user(f"{question.question_id}-1", question.turns[0]) for question in questions
    }
    first = _answer_turn(generator, opening, sampling, cache)
    follow_up = {
        question: Prompt(
            f"{question.question_id}-2",
            (
                {"role": "user", "content": question.turns[0]},
                {"role": "assistant", "content": first[question].text},
                {"role": "user", "content": question.turns[1]},
            ),
        )
        for question in questions
    }
    second = _answer_turn(generator, follow_up, sampling, cache)
    return [(first[question], second[question]) for question in questions]


def _answer_turn(
    generator: Generator, prompts: dict[Question, Prompt], sampling: Sampling, cache: Path
) -> dict[Question, Sample]:
    found: dict[Question, Sample] = {}
    heat = {question: TEMPERATURES.get(question.category, OTHER_TEMPERATURE) for question in prompts}
    for temperature in sorted(set(heat.values())):
        group = [question for question in prompts if heat[question] == temperature]
        settings = Sampling(temperature, sampling.top_p, sampling.max_new_tokens, sampling.seed)
        samples = generate(generator, [prompts[question] for question in group], settings, cache)
        found |= dict(zip(group, samples, strict=True))
    return found


def gradings(bench: Bench, answers: Sequence[tuple[str, str]], repeat: int = 0) -> list[Grading]:
    """Return every question to the judge: each turn of each answer, by its category's prompt."""
    pairs = zip(bench.questions, answers, strict=True)
    return [_grading(bench, question, turns, turn, repeat) for question, turns in pairs for turn in (1, 2)]


def _grading(bench: Bench, question: Question, answers: tuple[str, str], turn: int, repeat: int) -> Grading:
    name = PROMPT_NAMES[question.references is not None, turn]
    prompt = bench.prompts[name]
    markers = markers_of(prompt["prompt_template"])
    guarded = [guard(answer, markers) for answer in answers[:turn]]
    values = _values(question, [item.text for item in guarded], turn)
    messages = (
        {"role": "system", "content": prompt["system_prompt"]},
        {"role": "user", "content": fill(prompt["prompt_template"], values)},
    )
    request = JudgeRequest(messages, max_tokens=JUDGE_TOKENS, temperature=0.0, repeat=repeat, grammar=GRAMMAR)
    # Each answer is counted once, where it is the one being graded.
    return Grading(question, turn, name, request, guarded[-1].marked, guarded[-1].demands)


def _values(question: Question, answers: Sequence[str], turn: int) -> dict[str, str]:
    """Return the placeholders' values: FastChat names them singly in turn 1 and by number in turn 2."""
    if turn == 1:
        values = {"question": question.turns[0], "answer": answers[0]}
    else:
        values = {f"question_{n}": text for n, text in enumerate(question.turns, 1)}
        values |= {f"answer_{n}": text for n, text in enumerate(answers, 1)}
    for number, text in enumerate(question.references or (), 1):
        values[f"ref_answer_{number}"] = text
    return values


def score(judgment: str) -> float | None:
    """Return the verdict of a judgment, 1 to 10; None if there is none, or one out of range.

    `[[x]]` first, then `[x]` as FastChat's backup; the last one counts.
    """
    found = _VERDICT.findall(judgment) or _BACKUP.findall(judgment)
    value = float(found[-1]) if found else 0.0
    return value if 1 <= value <= 10 else None


def grade(judge: Judge, asked: Sequence[Grading]) -> tuple[list[float | None], list[Reply]]:
    """Judge every grading; return the scores (None where unparsable) and the replies."""
    replies = ask_all(judge, [grading.request for grading in asked])
    return [score(reply.text) for reply in replies], replies


def judgment_rows(
    asked: Sequence[Grading],
    scores: Sequence[float | None],
    replies: Sequence[Reply],
    *,
    model: str,
    judge: str,
) -> list[dict[str, Any]]:
    """Return judgments as FastChat's model_judgment rows; an unparsable one has the score -1, as there."""
    return [
        {
            "question_id": grading.question.question_id,
            "model": model,
            "judge": [judge, grading.prompt_name],
            "user_prompt": grading.request.messages[1]["content"],
            "judgment": reply.text,
            "score": -1 if value is None else value,
            "turn": grading.turn,
        }
        for grading, value, reply in zip(asked, scores, replies, strict=True)
    ]


def summarise_scores(
    asked: Sequence[Grading], scores: Sequence[float | None], *, seed: int = 0
) -> dict[str, Any]:
    """Return overall score, per turn and per category, with a bootstrap over questions for the overall one.

    The overall score is the mean over all judgments, as FastChat shows it. A resampled question brings both
    turns. Raises ValueError if more than 5 % of the judgments are unparsable.
    """
    known = [(grading, value) for grading, value in zip(asked, scores, strict=True) if value is not None]
    refuse_unparsable(len(asked) - len(known), len(asked))
    sums: dict[int, list[float]] = {}
    for grading, value in known:
        sums.setdefault(grading.question.question_id, []).append(value)
    overall = float(np.mean([value for _, value in known]))
    error, low, high = _bootstrap(list(sums.values()), seed)
    categories = {grading.question.category: None for grading, _ in known}
    return {
        "overall": overall,
        "overall_se": error,
        "overall_low": low if low is not None else overall,
        "overall_high": high if high is not None else overall,
        "turn1": _mean(value for grading, value in known if grading.turn == 1),
        "turn2": _mean(value for grading, value in known if grading.turn == 2),
        "categories": {
            name: _mean(v for g, v in known if g.question.category == name) for name in categories
        },
        "unparsable": len(asked) - len(known),
        "answers_with_markers": sum(grading.marked for grading in asked),
        "answers_asking_for_a_rating": sum(grading.demands for grading in asked),
        "n": len({grading.question.question_id for grading in asked}),
    }


def _bootstrap(scores: Sequence[Sequence[float]], seed: int) -> tuple[float, float | None, float | None]:
    """Return the standard error and the 95 % interval of the mean over judgments, questions resampled."""
    total = np.array([sum(values) for values in scores])
    count = np.array([len(values) for values in scores], dtype=float)
    if len(scores) < 2 or np.ptp(total / count) == 0:
        return 0.0, None, None
    result = stats.bootstrap(
        (total, count),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(result.standard_error), float(low), float(high)


def _mean(values: Any) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None
