"""The typed form of a benchmark's settings; every field's comment is in conf/benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.answers.prompts import Sampling

BENCHMARKS = ("verifiable", "alpaca_eval", "mt_bench", "lm_eval")


@dataclass
class BenchmarkConfig:
    name: str = "???"
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0
    limit: int | None = None
    baseline: str | None = None
    difficulties: str | None = None
    gamed: str | None = None
    weighted: bool = True
    order_seed: int = 0
    folder: str | None = None
    reference_model: str = "gpt-4"
    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    shots: int | None = None
    batch_size: int = 8
    headline: str = "win_rate"
    metrics: dict[str, str] = field(default_factory=dict)
    about: str = ""


def sampling_of(benchmark: BenchmarkConfig) -> Sampling:
    """Return how answers are drawn."""
    return Sampling(benchmark.temperature, benchmark.top_p, benchmark.max_new_tokens, benchmark.seed)
