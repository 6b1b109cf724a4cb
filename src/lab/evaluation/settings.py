"""The typed form of an evaluation: what conf/evaluate.yaml composes to, and all that is wrong with one.

Every key's comment is in its YAML, in conf/benchmark, conf/judge, conf/generator and conf/evaluate.yaml. What a
benchmark, judge or generator may be set to, its class says. Importing this loads nothing heavy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf

from lab.answers.generate import GENERATOR, generator_errors
from lab.benchmarks.benchmark import BENCHMARK, Benchmark, Subject
from lab.judging.judges import JUDGE, judge_errors
from sgdpo.config.compose import compose_alone, options_apart, quoted, to_run_config, to_typed, written
from sgdpo.config.schema import RunConfig
from sgdpo.contract import binding_errors, build, settings_of
from sgdpo.places import CONF
from sgdpo.runs.contents import why_no_model
from sgdpo.runs.records import RECORD, RunView, view_run
from sgdpo.source import load_dotted
from sgdpo.store import hash_json
from sgdpo.values import PLACE, Range, schema_errors

CONFIG_DIR = "--config-dir"


@dataclass
class EvaluateConfig:
    runs: list[str] = field(default_factory=list)
    benchmark: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    outputs: Annotated[str, PLACE] = "outputs"
    cache: Annotated[str, PLACE] = "outputs/cache"
    device: str = "auto"
    n_jobs: Annotated[int, Range("[1, 1000]")] = 1
    trust_remote_code: bool = False
    extra: list[str] = field(default_factory=list)


def compose_evaluation(words: Sequence[str]) -> EvaluateConfig:
    """Compose an evaluation from overrides and --config-dir=DIR. Raise ValueError for unknown keys."""
    given = [word.partition("=") for word in words if word.startswith(CONFIG_DIR)]
    folders = ",".join(quoted(f"file://{Path(folder).resolve()}") for _, _, folder in given)
    overrides = [word for word in words if not word.startswith(CONFIG_DIR)]
    overrides += [f"hydra.searchpath=[{folders}]"] if folders else []
    return to_typed(compose_alone("evaluate", EvaluateConfig, overrides), EvaluateConfig)


def runs_first(arguments: Sequence[str]) -> list[str]:
    """Turn leading folders into `runs=[...]`: Hydra takes overrides only. Options and overrides stay."""
    options, others = options_apart(arguments)
    runs = [word for word in others if not is_setting(word)]
    named = [f"runs=[{','.join(map(quoted, runs))}]"] if runs else []
    return [*options, *filter(is_setting, others), *named]


def is_setting(word: str) -> bool:
    """Say whether a word of the command line is KEY=VALUE; what lies on the disk may have such a name too."""
    return "=" in word and not Path(word).exists()


def build_benchmark(config: EvaluateConfig, subject: Subject | None = None, **changed: Any) -> Benchmark:
    """Return the benchmark of a YAML, for somebody; changed: settings other than the YAML's."""
    return build(BENCHMARK, {**config.benchmark, **changed}, config.extra, subject=subject)


def evaluation_errors(config: EvaluateConfig, *, runs: bool = True) -> list[str]:
    """List everything wrong with an evaluation, as sentences with advice; loads nothing heavy.

    runs: False looks at benchmark, judge and generator alone, before there is a run.
    """
    errors = list(schema_errors(config)) + (_run_errors(config) if runs else [])
    errors += binding_errors(BENCHMARK, config.benchmark, config.extra)
    errors += judge_errors(config.judge, config.extra) + generator_errors(config.generator, config.extra)
    errors += _match_errors(config)
    if not binding_errors(BENCHMARK, config.benchmark, config.extra):
        errors += build_benchmark(config).errors() or (_subject_errors(config) if runs else [])
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", config.device):
        errors.append(f"device must be auto, cpu or cuda, not {config.device!r}")
    return errors


def absent(config: Any) -> list[str]:
    """List what is not at hand yet for the judge and the generator of a sound evaluation or sampling: a key."""
    kinds = ((JUDGE, config.judge), (GENERATOR, config.generator))
    return [error for kind, given in kinds for error in build(kind, given, config.extra).absent()]


def results_asked(runs: Sequence[RunView], config: EvaluateConfig) -> list[list[str]]:
    """List of each run the keys of its results that have these settings of benchmark and generator, by this judge."""
    benchmark = build_benchmark(config)
    judge = benchmark.decides or config.judge["label"]
    asked = {"benchmark": config.benchmark["name"], "settings": benchmark.settings(), "generator": None}
    if benchmark.answered:
        generator = build(GENERATOR, config.generator, config.extra)
        generator.cache = Path(config.cache)
        asked["generator"] = generator.how()

    wanted, usual = hash_json(asked), f"{config.benchmark['name']}-{judge}" if is_usual(config) else None

    def is_asked(key: str, result: Mapping[str, Any]) -> bool:
        if not (identity := result.get("identity")):
            return key == usual
        return result.get("judge") == judge and hash_json({k: identity.get(k) for k in asked}) == wanted

    return [[key for key, result in (run["eval"] or {}).items() if is_asked(key, result)] for run in runs]


def is_usual(config: EvaluateConfig) -> bool:
    """Say whether benchmark and generator are set as their YAMLs in conf/ have them, as far as it matters."""
    benchmark, generator = written("benchmark", config.benchmark["name"]), usual_generator()
    if not benchmark or generator["class"] != config.generator["class"]:
        return False
    ours, theirs = (build(GENERATOR, given).how() for given in (config.generator, generator))
    return settings_of(BENCHMARK, benchmark) == settings_of(BENCHMARK, config.benchmark) and ours == theirs


def usual_generator() -> dict[str, Any]:
    """Return the YAML of the generator that an evaluation takes where none is named."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "evaluate.yaml"))["defaults"]
    name = next(row["generator"] for row in defaults if isinstance(row, dict) and "generator" in row)
    return written("generator", name)


def _run_errors(config: EvaluateConfig) -> list[str]:
    if not config.runs:
        return [
            "name at least one run: scripts/evaluate.py outputs/<experiment>/<run> [...] benchmark=verifiable"
        ]
    errors = [str(view_run(Path(run)).error) for run in config.runs if not (Path(run) / RECORD).is_file()]
    if len({Path(run).resolve() for run in config.runs}) != len(config.runs):
        errors.append("a run is named more than once")
    return errors


def _subject_errors(config: EvaluateConfig) -> list[str]:
    """Hold the benchmark against every run before the first one is evaluated."""
    errors = []
    for run in [run for run in map(Path, config.runs) if (run / RECORD).is_file()]:
        try:
            subject = Subject(run.name, run, read_config(run))
            errors += [f"{run}: {error}" for error in build_benchmark(config, subject).errors()]
        except ValueError as error:
            errors.append(str(error))
    return errors


def read_config(run: Path) -> RunConfig:
    """Return the settings a run was trained with. Raise ValueError if they cannot be read."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{run} holds no config.yaml, so its data and model are unknown; train it again")
    return _read(file, file.stat().st_mtime_ns)


@cache
def _read(file: Path, changed: int) -> RunConfig:
    """Read a run's settings once, whoever checks or takes them; anew where the file has changed."""
    return to_run_config(OmegaConf.load(file))


def _match_errors(config: EvaluateConfig) -> list[str]:
    """Hold the traits of the three classes against each other; what cannot be loaded is an error of its own."""
    groups = (config.benchmark, config.judge, config.generator)
    try:
        benchmark, judge, generator = (load_dotted(group["class"], config.extra) for group in groups)
    except (KeyError, ValueError):
        return []
    name, judge_name, generator_name = (group["name"] for group in groups)
    errors = []
    judges = judge.asks or judge.judgments is not None
    if benchmark.decides and judges:
        errors.append(f"benchmark={name} is judged by its {benchmark.decides}: leave judge={judge_name} out")
    if not benchmark.decides and not judges:
        errors.append(f"judge={judge_name} judges nothing by itself; take judge=openai or local for {name}")
    if not benchmark.answered and generator_name != usual_generator()["name"]:
        errors.append(f"benchmark={name} scores with the model itself: leave generator={generator_name} out")
    if generator.of_run or not benchmark.answered:
        errors += [
            f"{run} {wrong}"
            for run in map(Path, config.runs)
            if (run / RECORD).is_file() and (wrong := why_no_model(run, config.cache))
        ]
    return errors
