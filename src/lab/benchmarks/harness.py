"""Conditional benchmarks (GSM8K, MMLU and so on) through lm-eval, an optional extra: `pip install lm-eval`.

The harness is given the run's own model, an adapter merged into its base as everywhere.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

from lab.answers.prompts import Sample
from lab.benchmarks.benchmark import Benchmark, Count, Judgment
from lab.judging.judges import JudgeRequest
from sgdpo.runs.contents import own_model
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
        if self.include_path and not list(Path(self.include_path).glob("**/*.yaml")):
            errors.append(f"benchmark.include_path={self.include_path} holds no task files (*.yaml)")
        return errors or self._unknown_tasks()

    def _unknown_tasks(self) -> list[str]:
        known, errors = task_manager(self.include_path).all_tasks, []
        for task in [task for task in self.tasks if task not in known and not Path(task).is_file()]:
            close = " or ".join(get_close_matches(task, known, 3))
            meant = f"did you mean {close}?" if close else "`lm_eval ls tasks` lists them"
            errors.append(f"benchmark.tasks: lm-eval has no task {task!r}; {meant}")
        return errors

    @cached_property
    def results(self) -> dict[str, Any]:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        from sgdpo.models.device import device_of
        from sgdpo.models.load import load_model, load_tokenizer

        subject = self.subject
        assert subject is not None
        assert subject.folder is not None, "evaluate asks for a run where nothing is answered"
        assert subject.config is not None
        own = own_model(subject.folder, subject.config.model)
        model = load_model(own, seed=0).to(device_of(subject.device)).eval()
        return lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=load_tokenizer(own), batch_size=self.batch_size),
            tasks=list(self.tasks),
            num_fewshot=self.shots,
            limit=self.limit,
            **{
                f"{kind}_seed": self.seed
                for kind in ("random", "numpy_random", "torch_random", "fewshot_random")
            },
            task_manager=task_manager(self.include_path),
            apply_chat_template=True,
        )

    def questions(self, samples: Sequence[Sample], repeat: int = 0) -> list[JudgeRequest]:
        """Let the harness ask and decide, before anything is written; nothing is left for a judge."""
        _ = self.results
        return []

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
        return {
            "include_path": self.include_path
            and hash_folder(Path(self.include_path), ["**/*.yaml", "**/*.py"])
        }


@cache
def task_manager(include_path: str | None) -> Any:
    """Return lm-eval's list of its thousands of task files, and of those in a folder: seconds, and once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
