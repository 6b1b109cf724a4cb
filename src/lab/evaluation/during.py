"""A benchmark whose prompts a run answers while it trains (`trainer.benchmark`), scored by the benchmark's checker.

`conf/trainer` names the class by its path: the trainer knows no benchmark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab.answers.prompts import Prompt, Sample, prompt_ids
from lab.benchmarks.benchmark import BENCHMARK, Benchmark, Subject
from sgdpo.config.schema import RunConfig
from sgdpo.contract import binding_errors, build


@dataclass(kw_only=True)
class During:
    """Give the first `trainer.samples` prompts of a run's benchmark, and score answers to them."""

    run: RunConfig

    def errors(self) -> list[str]:
        """List why the benchmark cannot be asked while the run trains; nothing heavy loads."""
        name = self.run.trainer.benchmark
        if not self.run.trainer.asks:
            return [f"trainer.benchmark={name}: there is no conf/benchmark/{name}.yaml (nor in --config-dir)"]
        if errors := binding_errors(BENCHMARK, self._settings, self.run.extra):
            return errors
        if not (self._benchmark.decides and self._benchmark.answered):
            return [
                f"trainer.benchmark={name} has no checker of answers, and no other is asked while a run trains"
            ]
        return [f"trainer.benchmark={name}: {error}" for error in self._benchmark.errors()]

    def prompts(self, tokenizer: Any) -> list[tuple[int, ...]]:
        """Return the token ids of each prompt, as training renders it."""
        return [tuple(prompt_ids(tokenizer, prompt)) for prompt in self._prompts]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the score of the answer to each prompt, in their order."""
        answers = zip(self._prompts, texts, strict=True)
        samples = [Sample(prompt.prompt_id, text, None, truncated=False) for prompt, text in answers]
        decided = [request.decided for request in self._benchmark.questions(samples)]
        return [0.0 if score is None else float(score) for score in decided]

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {**(self.run.trainer.asks or {}), "limit": self.run.trainer.samples}

    @cached_property
    def _benchmark(self) -> Benchmark:
        subject = Subject(self.run.model.name, None, self.run)
        made: Benchmark = build(BENCHMARK, self._settings, self.run.extra, subject=subject)
        return made

    @cached_property
    def _prompts(self) -> list[Prompt]:
        return self._benchmark.prompts()
