"""One AlpacaEval evaluation of one run: answer, judge, summarise, write AlpacaEval's files beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.answers.formats import locate, read_outputs, read_rows, write_list
from lab.answers.generate import Generator, generate
from lab.answers.prompts import Prompt, Sample
from lab.benchmarks.alpaca_eval import (
    ANNOTATOR,
    TEMPLATE,
    TOP_LOGPROBS,
    Duel,
    Verdicts,
    annotation_rows,
    judge_duels,
    summarise_annotations,
    switched,
)
from lab.benchmarks.alpaca_files import match, read_difficulties, read_gamed
from lab.benchmarks.settings import BenchmarkConfig, sampling_of
from lab.judging.judges import Judge
from sgdpo.store import hash_text, write_jsonl


def evaluate_alpaca(
    generator: Generator,
    judge: Judge,
    benchmark: BenchmarkConfig,
    *,
    name: str,
    folder: Path,
    cache: Path,
) -> dict[str, Any]:
    """Evaluate a run on AlpacaEval and return the result. a judge that is not asked: annotations come from its file."""
    duels, samples, baseline_name = duel_all(generator, benchmark, cache)
    if not judge.asks:
        verdicts = cached_verdicts(duels, str(judge.judgments))
    else:
        verdicts = judge_duels(judge, duels, top_logprobs=TOP_LOGPROBS if benchmark.weighted else 0)
    rows = annotation_rows(
        duels,
        verdicts,
        baseline_name=baseline_name,
        our_name=name,
        annotator=ANNOTATOR if benchmark.weighted else "alpaca_eval_clf",
    )
    _write(folder, name, duels, samples, rows, judge.label)
    result = summarise_annotations(rows, **_difficulty(benchmark, len(rows)), seed=benchmark.seed)
    tokens = [sample.tokens for sample in samples]
    return {
        **result,
        "tokens_mean": None if None in tokens else float(np.mean(tokens)),
        "truncated": sum(sample.truncated for sample in samples),
        "prompts_cut": sum(sample.prompt_cut for sample in samples),
        "answers_with_markers": verdicts.marked,
        "answers_asking_for_a_rating": verdicts.demands,
        "prompts_hash": verdicts.template_hash,
        "baseline": baseline_name,
    }


def duel_all(
    generator: Generator, benchmark: BenchmarkConfig, cache: Path
) -> tuple[list[Duel], list[Sample], str]:
    """Answer the baseline's instructions; return the duels, our samples and the baseline's name."""
    theirs = read_outputs(str(benchmark.baseline))[: benchmark.limit]
    prompts = [Prompt.user(hash_text(row["instruction"]), row["instruction"]) for row in theirs]
    samples = generate(generator, prompts, sampling_of(benchmark), cache)
    duels = [
        Duel(
            row["instruction"], row["output"], sample.text, switched(row["instruction"], benchmark.order_seed)
        )
        for row, sample in zip(theirs, samples, strict=True)
    ]
    return duels, samples, str(theirs[0].get("generator") or "baseline")


def cached_verdicts(duels: Sequence[Duel], path: str) -> Verdicts:
    """Read the preferences of an annotations.json; refuse annotations of other answers than these."""
    rows = read_rows(locate(path), ("instruction", "output_1", "output_2"))
    rows = match(rows, [duel.instruction for duel in duels], path)
    others = [
        duel.instruction
        for duel, row in zip(duels, rows, strict=True)
        if (row["output_1"], row["output_2"]) != (duel.baseline, duel.ours)
    ]
    if others:
        raise ValueError(
            f"{path} judges other answers for {len(others)} of {len(duels)} instructions (first: "
            f"{others[0][:60]!r}); take the answers that belong to it: generator=file generator.path=..."
        )
    template = TEMPLATE.read_text("utf-8")
    return Verdicts([row.get("preference") for row in rows], [None] * len(rows), 0, 0, hash_text(template))


def _difficulty(benchmark: BenchmarkConfig, count: int) -> dict[str, Any]:
    """Return what the length-controlled fit needs beside the annotations, as far as files are given."""
    return {
        "difficulties": read_difficulties(benchmark.difficulties, count) if benchmark.difficulties else None,
        "gamed": read_gamed(benchmark.gamed) if benchmark.gamed else None,
    }


def _write(
    folder: Path,
    name: str,
    duels: Sequence[Duel],
    samples: Sequence[Sample],
    annotations: Sequence[Mapping[str, Any]],
    judge: str,
) -> None:
    """Write AlpacaEval's two files, and samples and judgments by prompt as every benchmark does."""
    outputs = [
        {"instruction": duel.instruction, "output": duel.ours, "generator": name, "dataset": "alpaca_eval"}
        for duel in duels
    ]
    write_list(folder / "model_outputs.json", outputs)
    write_list(folder / "annotations.json", annotations)
    write_jsonl(
        folder / "samples.jsonl",
        [{"prompt": d.instruction, **s.row()} for d, s in zip(duels, samples, strict=True)],
    )
    write_jsonl(
        folder / "judgments.jsonl",
        [
            {
                "prompt_id": sample.prompt_id,
                "judge": judge,
                "preference": None if row["preference"] is None else row["preference"] - 1,
                "switched": duel.switched,
            }
            for sample, row, duel in zip(samples, annotations, duels, strict=True)
        ],
    )
