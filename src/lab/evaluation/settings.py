"""The typed form of an evaluation: what conf/evaluate.yaml composes to, and all that is wrong with one.

Every field's comment is in its YAML, in conf/benchmark, conf/judge, conf/generator and conf/evaluate.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from lab.answers.generate import GENERATOR, generator_errors
from lab.benchmarks.settings import BENCHMARKS, BenchmarkConfig, sampling_of
from lab.judging.judges import judge_errors
from sgdpo.config.compose import CONF
from sgdpo.contract import load


@dataclass
class EvaluateConfig:
    runs: list[str] = field(default_factory=list)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    judge: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    outputs: str = "outputs"
    cache: str = "outputs/cache"
    device: str = "auto"


def register_schema() -> None:
    """Make the typed form known to Hydra; conf/evaluate.yaml names it first in its defaults."""
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)


def to_evaluate_config(config: DictConfig) -> EvaluateConfig:
    """Return the resolved evaluation as typed dataclasses. Raise ValueError for unknown keys."""
    resolved = OmegaConf.to_container(config, resolve=True)
    resolved.pop("hydra", None)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvaluateConfig), resolved))
    except Exception as error:
        raise ValueError(f"{error}".splitlines()[0]) from None


def compose_evaluation(overrides: list[str]) -> EvaluateConfig:
    """Compose an evaluation from command-line overrides, without Hydra's application around it."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_evaluate_config(compose("evaluate", overrides))


def evaluation_errors(config: EvaluateConfig, runs: bool = True) -> list[str]:
    """List everything wrong with an evaluation, as sentences with advice; loads nothing heavy.

    runs: those are looked at too; false where they are still to be trained.
    """
    errors = judge_errors(config.judge)
    unanswered = generator_errors(config.generator)
    own = not unanswered and load(GENERATOR, config.generator).of_run
    errors += unanswered + _name_errors(config) + sampling_of(config.benchmark).errors()
    errors += (_run_errors(config, own) if runs else []) + _match_errors(config)
    if config.benchmark.limit is not None and config.benchmark.limit < 1:
        errors.append(f"benchmark.limit must be 1 or more, or null for all, not {config.benchmark.limit}")
    return errors


def _name_errors(config: EvaluateConfig) -> list[str]:
    name = config.benchmark.name
    return [] if name in BENCHMARKS else [f"benchmark={name!r} is not one of {list(BENCHMARKS)}"]


def _run_errors(config: EvaluateConfig, own: bool) -> list[str]:
    if not config.runs:
        return [
            "name at least one run: scripts/evaluate.py outputs/<experiment>/<run> [...] benchmark=verifiable"
        ]
    errors = []
    for run in map(Path, config.runs):
        if not (run / "record.json").is_file():
            errors.append(f"{run} is not a run: it holds no record.json; give outputs/<experiment>/<run>")
        elif own and not (run / "model" / "config.json").is_file():
            errors.append(f"{run} holds no model; it is not finished: train it first")
    if len({Path(run).resolve() for run in config.runs}) != len(config.runs):
        errors.append("a run is named more than once")
    return errors


def _match_errors(config: EvaluateConfig) -> list[str]:
    benchmark, judge = config.benchmark.name, config.judge.get("name")
    errors = []
    if benchmark == "verifiable" and judge != "checker":
        errors.append(f"benchmark=verifiable is judged by its checker: leave judge={judge} out")
    if benchmark in ("alpaca_eval", "mt_bench") and judge == "checker":
        errors.append(
            f"judge=checker knows only benchmark=verifiable; take judge=openai or local for {benchmark}"
        )
    if benchmark == "alpaca_eval" and not config.benchmark.baseline:
        errors.append("benchmark=alpaca_eval needs benchmark.baseline: the baseline's model_outputs.json")
    if benchmark == "lm_eval" and not config.benchmark.tasks:
        errors.append("benchmark=lm_eval needs benchmark.tasks, e.g. benchmark.tasks=[gsm8k]")
    if benchmark == "lm_eval" and config.generator.get("name") != "transformers":
        errors.append("benchmark=lm_eval scores with the model itself: leave generator out")
    return errors
