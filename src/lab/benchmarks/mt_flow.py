"""One MT-Bench evaluation of one run: answer both turns, grade, summarise, write FastChat's files too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.answers.generate import Generator
from lab.benchmarks.mt_bench import (
    Grading,
    answer_questions,
    grade,
    gradings,
    judgment_rows,
    summarise_scores,
)
from lab.benchmarks.mt_files import answer_rows, load_bench
from lab.benchmarks.settings import BenchmarkConfig, sampling_of
from lab.judging.judges import Judge
from lab.serving.reply import Reply
from sgdpo.store import read_jsonl, write_jsonl


def evaluate_mt_bench(
    generator: Generator,
    judge: Judge,
    benchmark: BenchmarkConfig,
    *,
    name: str,
    folder: Path,
    cache: Path,
) -> dict[str, Any]:
    """Evaluate a run on MT-Bench and return the result. a judge that is not asked: judgments come from its file."""
    source = Path(benchmark.folder) if benchmark.folder else None
    bench = load_bench(source, benchmark.reference_model, benchmark.limit)
    samples = answer_questions(generator, bench.questions, sampling_of(benchmark), cache)
    answers = [(first.text, second.text) for first, second in samples]
    asked = gradings(bench, answers)
    write_jsonl(folder / "answers.jsonl", answer_rows(bench.questions, answers, name))
    write_jsonl(folder / "samples.jsonl", [sample.row() for both in samples for sample in both])
    if not judge.asks:
        scores, replies = cached_scores(asked, judge.judgments)
    else:
        scores, replies = grade(judge, asked)
    rows = judgment_rows(asked, scores, replies, model=name, judge=judge.label)
    write_jsonl(
        folder / "judgments.jsonl", [{"prompt_id": f"{r['question_id']}-{r['turn']}", **r} for r in rows]
    )
    tokens = [sample.tokens for both in samples for sample in both]
    return {
        **summarise_scores(asked, scores, seed=benchmark.seed),
        "tokens_mean": None if None in tokens else float(np.mean(tokens)),
        "truncated": sum(sample.truncated for both in samples for sample in both),
        "prompts_cut": sum(sample.prompt_cut for both in samples for sample in both),
        "prompts_hash": bench.prompts_hash,
    }


def cached_scores(asked: Sequence[Grading], file: Path) -> tuple[list[float | None], list[Reply]]:
    """Read FastChat's judgments; refuse missing or double ones, and judgments of other answers than these."""
    rows = read_jsonl(file)
    found = {(row["question_id"], row["turn"]): row for row in rows}
    if len(found) != len(rows):
        raise ValueError(
            f"{file} judges {len(rows) - len(found)} turns twice; keep one model's judgments in it"
        )
    missing = [
        (g.question.question_id, g.turn) for g in asked if (g.question.question_id, g.turn) not in found
    ]
    if missing:
        raise ValueError(
            f"{file} lacks {len(missing)} of {len(asked)} judgments (first: question, turn {missing[0]})"
        )
    scores, replies = [], []
    for grading in asked:
        row = found[grading.question.question_id, grading.turn]
        prompt = row.get("user_prompt")
        if prompt is not None and not grading.marked and prompt != grading.request.messages[1]["content"]:
            raise ValueError(
                f"{file}: the judgment of question {grading.question.question_id}, turn {grading.turn} is of "
                "another answer; take the answers that belong to it: generator=file generator.path=..."
            )
        scores.append(row["score"] if 1 <= row["score"] <= 10 else None)
        replies.append(Reply(row.get("judgment", "")))
    return scores, replies
