"""The verifiable benchmark: a checker knows the quality of every answer; judging needs no network, no luck.

Answers to the held-out prompts of `data=verifiable` are scored 0 to 10; the win rate is over a baseline's
answers to the same prompts (the SFT start), the better score wins and equal scores count half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.answers.generate import Generator, generate
from lab.answers.own_model import TransformersGenerator
from lab.answers.prompts import Prompt, Sample, Sampling
from lab.benchmarks.length_control import length_controlled
from lab.benchmarks.statistics import mean_error, preferences, win_rate
from sgdpo.config.schema import DataConfig, ModelConfig
from sgdpo.store import read_jsonl, write_json, write_jsonl
from sgdpo.world.checker import check
from sgdpo.world.verifiable import Task, held_out_prompts

BEST = 10
SAMPLES, JUDGMENTS, RESULT = "samples.jsonl", "judgments.jsonl", "result.json"


def evaluate_verifiable(
    model_folder: Path,
    data: DataConfig,
    sampling: Sampling,
    *,
    baseline: Path | None,
    device: str,
    folder: Path,
    cache: Path,
) -> dict[str, Any]:
    """Answer the held-out prompts with a saved model, check the answers, write both, return the result.

    baseline: the folder of an earlier evaluation (or its samples file) to win over; None leaves the win rates
    out.
    """
    model = ModelConfig(name=model_folder.name, path=str(model_folder))
    generator = TransformersGenerator(model, device=device)
    return judge_verifiable(generator, data, sampling, baseline=baseline, folder=folder, cache=cache)


def judge_verifiable(
    generator: Generator,
    data: DataConfig,
    sampling: Sampling,
    *,
    baseline: Path | None,
    folder: Path,
    cache: Path,
    limit: int | None = None,
) -> dict[str, Any]:
    """Do what evaluate_verifiable does, with any generator and on the first `limit` prompts.

    Raises ValueError if `data` is not generated, or the baseline's prompts are not the same.
    """
    # The baseline is read first: one that does not fit is found before the model answers.
    theirs = None if baseline is None else read_baseline(baseline, [t.task_id for t in _tasks(data, limit)])
    tasks, samples = answer_tasks(generator, data, sampling, cache, limit)
    rows = [_row(task, sample) for task, sample in zip(tasks, samples, strict=True)]
    write_jsonl(folder / SAMPLES, rows)
    write_jsonl(folder / JUDGMENTS, _judgments(rows, theirs))
    result = {**summarise(rows, theirs, sampling.seed), "sampling": asdict(sampling), "samples": SAMPLES}
    write_json(folder / RESULT, result)
    return result


def answer_tasks(
    generator: Generator, data: DataConfig, sampling: Sampling, cache: Path, limit: int | None = None
) -> tuple[list[Task], list[Sample]]:
    """Return the first `limit` held-out tasks of the world and an answer to each."""
    tasks = _tasks(data, limit)
    prompts = [Prompt.user(task.task_id, task.prompt) for task in tasks]
    return tasks, generate(generator, prompts, sampling, cache)


def _tasks(data: DataConfig, limit: int | None) -> list[Task]:
    if data.world is None:
        raise ValueError(
            f"benchmark=verifiable needs the world of data=verifiable; the run's data is {data.name!r}"
        )
    return held_out_prompts(data.world)[:limit]


def read_baseline(path: Path, prompt_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the baseline's scored answers, in the order of the prompts.

    Raises ValueError if the file is absent, or lacks prompts, or holds one twice.
    """
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"no answers of the baseline at {file}; evaluate that run first, or set baseline=null"
        )
    rows = read_jsonl(file)
    found = {row["prompt_id"]: row for row in rows}
    if len(found) != len(rows):
        raise ValueError(f"{file} holds {len(rows) - len(found)} prompts twice; evaluate the baseline again")
    if missing := [key for key in prompt_ids if key not in found]:
        raise ValueError(
            f"{file} has no answer to {len(missing)} of {len(prompt_ids)} prompts (first: {missing[0]!r}); "
            "it answered another world or limit: evaluate the baseline with the same data"
        )
    return [found[key] for key in prompt_ids]


def summarise(rows: Sequence[dict], theirs: Sequence[dict] | None, seed: int) -> dict[str, Any]:
    """Return the benchmark's numbers. Win rates and `perfect` in per cent, `truncated` and `n` counts."""
    score, error = mean_error([row["score"] for row in rows])
    result = {
        "score_mean": score,
        "score_se": error,
        **_wins(rows, theirs, seed),
        "tokens_mean": mean_error([row["tokens"] for row in rows])[0],
        "characters_mean": mean_error([row["characters"] for row in rows])[0],
        "perfect": 100 * sum(row["score"] == BEST for row in rows) / len(rows),
        "truncated": sum(row["truncated"] for row in rows),
        "prompts_cut": sum(row["prompt_cut"] for row in rows),
        "n": len(rows),
    }
    return result


def _wins(rows: Sequence[dict], theirs: Sequence[dict] | None, seed: int) -> dict[str, Any]:
    keys = (
        "win_rate",
        "win_rate_se",
        "win_rate_low",
        "win_rate_high",
        "lc_win_rate",
        "lc_win_rate_se",
        "lc_form",
    )
    if theirs is None:
        return dict.fromkeys(keys)
    won_B = preferences(_column(rows, "score"), _column(theirs, "score"))
    rate = win_rate(won_B)
    lc = length_controlled(won_B, _column(rows, "characters"), _column(theirs, "characters"), seed=seed)
    values = (rate.value, rate.error, rate.low, rate.high, lc.value, lc.error, lc.form)
    return dict(zip(keys, values, strict=True))


def _row(task: Task, sample: Sample) -> dict[str, Any]:
    score = check(task, sample.text)
    return {
        "prompt_id": sample.prompt_id,
        "prompt": task.prompt,
        "response": sample.text,
        "tokens": sample.tokens,
        "characters": len(sample.text),
        "truncated": sample.truncated,
        "prompt_cut": sample.prompt_cut,
        "score": score.total,
        "correct": score.correct,
        "format": score.format,
        "padding": score.padding,
    }


def _judgments(rows: Sequence[dict], theirs: Sequence[dict] | None) -> list[dict[str, Any]]:
    judged = [{"prompt_id": row["prompt_id"], "judge": "checker", "score": row["score"]} for row in rows]
    if theirs is None:
        return judged
    won_B = preferences(_column(rows, "score"), _column(theirs, "score"))
    return [
        {**row, "baseline_score": their["score"], "preference": float(won)}
        for row, their, won in zip(judged, theirs, won_B, strict=True)
    ]


def _column(rows: Sequence[dict], key: str) -> list[float]:
    return [row[key] for row in rows]
