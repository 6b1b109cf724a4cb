"""Conditional benchmarks (GSM8K, MMLU and so on) through lm-eval, an optional extra: `pip install lm-eval`.

The harness loads the run's saved model itself; its numbers go into the run's record as `lm_eval-harness`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from lab.benchmarks.settings import BenchmarkConfig
from sgdpo.store import write_json


def evaluate_harness(benchmark: BenchmarkConfig, run: Path, *, device: str, folder: Path) -> dict[str, Any]:
    """Run lm-eval's tasks on a run's model; return {task: {metric: value}}. Raise ValueError without lm-eval.

    benchmark.include_path: a folder with task files of your own.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("benchmark=lm_eval needs the package lm-eval: `pip install lm-eval`")
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={run / 'model'},dtype=float32",
        tasks=list(benchmark.tasks),
        num_fewshot=benchmark.shots,
        limit=benchmark.limit,
        batch_size=benchmark.batch_size,
        device=device,
        random_seed=benchmark.seed,
        task_manager=TaskManager(include_path=benchmark.include_path),
        apply_chat_template=True,
    )
    results = {
        task: {key: value for key, value in numbers.items() if isinstance(value, int | float)}
        for task, numbers in found["results"].items()
    }
    write_json(folder / "lm_eval.json", found["results"])
    return {
        "tasks": results,
        "n": {task: found["n-samples"][task]["effective"] for task in found["n-samples"]},
    }
