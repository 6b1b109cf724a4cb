"""The typed form of an evaluation: what conf/evaluate.yaml composes to, and all that is wrong with one.

Every field's comment is in its YAML, in conf/benchmark, conf/judge, conf/generator and conf/evaluate.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from lab.answers.prompts import Sampling
from lab.judging.endpoint import EndpointSettings
from lab.judging.local_server import server_errors
from sgdpo.config.compose import CONF

BENCHMARKS = ("verifiable", "alpaca_eval", "mt_bench", "lm_eval")
JUDGES = ("checker", "openai", "local", "cached")
GENERATORS = ("transformers", "vllm", "openai", "file")


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


@dataclass
class JudgeConfig(EndpointSettings):
    name: str = "???"
    label: str = "???"
    file: str | None = None
    model_file: str | None = None
    context: int = 8192
    top_logprobs: int = 5
    grammar: bool = False


@dataclass
class GeneratorConfig(EndpointSettings):
    name: str = "???"
    batch_tokens: int = 32768
    dtype: str = "float32"
    long_prompts: str = "cut"
    path: str | None = None


@dataclass
class EvaluateConfig:
    runs: list[str] = field(default_factory=list)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
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


def sampling_of(benchmark: BenchmarkConfig) -> Sampling:
    """Return how answers are drawn."""
    return Sampling(benchmark.temperature, benchmark.top_p, benchmark.max_new_tokens, benchmark.seed)


def evaluation_errors(config: EvaluateConfig) -> list[str]:
    """List everything wrong with an evaluation, as sentences with advice; loads nothing heavy."""
    errors = _run_errors(config) + _name_errors(config) + sampling_of(config.benchmark).errors()
    errors += _match_errors(config)
    if config.judge.name == "openai":
        errors += [f"judge.{error}" for error in config.judge.errors()]
    if config.judge.name == "local":
        errors += server_errors(Path(config.judge.model_file) if config.judge.model_file else None)
    if config.judge.name == "cached" and not (config.judge.file and Path(config.judge.file).is_file()):
        errors.append(f"judge=cached reads judgments from a file; judge.file={config.judge.file} is none")
    if config.generator.name == "openai":
        errors += [f"generator.{error}" for error in config.generator.errors()]
    if config.generator.name == "file" and not (
        config.generator.path and Path(config.generator.path).is_file()
    ):
        errors.append(
            f"generator=file reads answers from a file; generator.path={config.generator.path} is none"
        )
    if config.generator.long_prompts not in ("cut", "error"):
        errors.append(f"generator.long_prompts must be cut or error, not {config.generator.long_prompts!r}")
    if config.benchmark.limit is not None and config.benchmark.limit < 1:
        errors.append(f"benchmark.limit must be 1 or more, or null for all, not {config.benchmark.limit}")
    return errors


def _name_errors(config: EvaluateConfig) -> list[str]:
    named = (
        ("benchmark", config.benchmark.name, BENCHMARKS),
        ("judge", config.judge.name, JUDGES),
        ("generator", config.generator.name, GENERATORS),
    )
    return [
        f"{what}={name!r} is not one of {list(known)}" for what, name, known in named if name not in known
    ]


def _run_errors(config: EvaluateConfig) -> list[str]:
    if not config.runs:
        return [
            "name at least one run: scripts/evaluate.py outputs/<experiment>/<run> [...] benchmark=verifiable"
        ]
    errors = []
    for run in map(Path, config.runs):
        if not (run / "record.json").is_file():
            errors.append(f"{run} is not a run: it holds no record.json; give outputs/<experiment>/<run>")
        elif (
            config.generator.name in ("transformers", "vllm")
            and not (run / "model" / "config.json").is_file()
        ):
            errors.append(f"{run} holds no model; it is not finished: train it first")
    if len({Path(run).resolve() for run in config.runs}) != len(config.runs):
        errors.append("a run is named more than once")
    return errors


def _match_errors(config: EvaluateConfig) -> list[str]:
    benchmark, judge = config.benchmark.name, config.judge.name
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
    if benchmark == "lm_eval" and config.generator.name != "transformers":
        errors.append("benchmark=lm_eval scores with the model itself: leave generator out")
    return errors
