"""Conditional benchmarks (GSM8K, MMLU and so on) through lm-eval, an optional extra: `pip install lm-eval`.

The harness loads the run's saved model itself; its numbers go into the run's record as `lm_eval-harness`.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from lab.answers.prompts import Sample
from lab.benchmarks.benchmark import Benchmark, Count, Judgment
from sgdpo.store import hash_folder, write_json
from sgdpo.values import Range

Shots = Annotated[int, Range("[0, 1000]")]


@dataclass(kw_only=True)
class LmEval(Benchmark):
    """Run lm-eval's tasks on the run's saved model."""

    decides = "harness"
    answered = False

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    shots: Shots | None = None
    batch_size: Count = 8

    def errors(self) -> list[str]:
        errors = []
        if importlib.util.find_spec("lm_eval") is None:
            errors.append("benchmark=lm_eval needs the package lm-eval: `pip install lm-eval`")
        if not self.tasks:
            errors.append("benchmark=lm_eval needs benchmark.tasks, e.g. benchmark.tasks=[gsm8k]")
        return errors

    @cached_property
    def results(self) -> dict[str, Any]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from sgdpo.models.device import device_of

        assert self.subject is not None
        assert self.subject.folder is not None, "evaluate asks for a run where nothing is answered"
        return lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={self.subject.folder / 'model'},dtype=float32",
            tasks=list(self.tasks),
            num_fewshot=self.shots,
            limit=self.limit,
            batch_size=self.batch_size,
            device=str(device_of(self.subject.device)),
            random_seed=self.seed,
            task_manager=TaskManager(include_path=self.include_path),
            apply_chat_template=True,
        )

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        numbers = {
            task: {key: value for key, value in row.items() if isinstance(value, int | float)}
            for task, row in self.results["results"].items()
        }
        asked = self.results["n-samples"]
        return {"tasks": numbers, "n": {task: asked[task]["effective"] for task in asked}}

    def write(self, folder: Path, samples: Sequence[Sample], judgments: Sequence[Judgment]) -> None:
        write_json(folder / "lm_eval.json", self.results["results"])

    def inputs(self) -> dict[str, Any]:
        return {"include_path": self.include_path and hash_folder(Path(self.include_path), ["*.yaml"])}
