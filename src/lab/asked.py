"""What a reproduction is asked for, and all that is wrong with it, before anything is trained."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from lab.benchmarks.benchmark import Subject
from lab.evaluation.settings import (
    EvaluateConfig,
    absent,
    build_benchmark,
    compose_evaluation,
    evaluation_errors,
)
from lab.report.exhibit import FOLDER, Exhibit, exhibit_names, find_exhibit
from sgdpo.config.compose import compose_run, to_run_config
from sgdpo.places import CONF

EVERYTHING = "paper"
# Settings of the sampling and of the judging, among the arguments; the others are of the training.
SAMPLING = "sample."
JUDGING = ("judge.", "benchmark.", "generator.", "generator=")


@dataclass(frozen=True)
class Options:
    """Hold what is asked for; an empty value takes the scale's own.

    target: a table or figure (conf/report), or "paper" for all. seeds: how many, from 42 on. arguments: further
    overrides of the training ("optimizer.max_steps=50") and of the judging ("judge.budget_dollars=20").
    evaluation: which judge's results a table shows, if the runs have several.
    """

    target: str
    scale: str = "tiny"
    seeds: int = 1
    n_jobs: int = 1
    dry_run: bool = False
    models: tuple[str, ...] = ()
    benchmark: str = ""
    judge: str = ""
    evaluation: str = ""
    train_rows: str = ""
    test_rows: str = ""
    outputs: str = "outputs"
    arguments: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Give what keeps the experiments of other scales apart."""
        return "" if self.scale == "tiny" else f"-{self.scale}"

    @property
    def of_scale(self) -> dict[str, Any]:
        return load_scales()[self.scale]

    @property
    def judging(self) -> list[str]:
        return [argument for argument in self.arguments if argument.startswith(JUDGING)]

    @property
    def places(self) -> list[str]:
        return [f"outputs={self.outputs}", f"cache={self.outputs}/cache"]

    @property
    def command(self) -> str:
        """Give what was typed to ask for this, but for places and processes."""
        seeds = str(self.seeds) if self.seeds > 1 else ""
        words = {"SCALE": self.suffix[1:], "SEEDS": seeds, "MODELS": ",".join(self.models)}
        words |= {"BENCHMARK": self.benchmark, "JUDGE": self.judge, "EVALUATION": self.evaluation}
        words |= {
            "TRAIN_ROWS": self.train_rows,
            "TEST_ROWS": self.test_rows,
            "ARGS": " ".join(self.arguments),
        }
        return shlex.join(["make", self.target, *(f"{key}={value}" for key, value in words.items() if value)])

    def experiment(self, exhibit: Exhibit) -> str:
        return f"{exhibit.experiment}{self.suffix}"

    def folder(self, exhibit: Exhibit) -> str:
        return f"{self.outputs}/{exhibit.name}{self.suffix}"


@cache
def load_scales() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "scales.yaml").read_text("utf-8"))


def option_errors(options: Options) -> list[str]:
    errors = []
    if options.target not in (*exhibit_names(), EVERYTHING):
        there = ", ".join([*exhibit_names(), EVERYTHING])
        errors.append(f"unknown table or figure {options.target!r}; there are: {there}")
    if options.scale not in load_scales():
        errors.append(f"SCALE is {options.scale!r}; it is one of {', '.join(load_scales())}")
    if options.seeds < 1 or options.n_jobs < 1:
        errors.append(f"SEEDS ({options.seeds}) and N_JOBS ({options.n_jobs}) must be 1 or more")
    if options.test_rows and not options.train_rows:
        errors.append(
            f"TEST_ROWS={options.test_rows}: held-out rows go with rows to train on; give TRAIN_ROWS too"
        )
    benchmarks = tuple(f"{path.stem}-" for path in sorted((CONF / "benchmark").glob("*.yaml")))
    if options.evaluation and not options.evaluation.startswith(benchmarks):
        errors.append(
            f"EVALUATION is {options.evaluation!r}; it is <benchmark>-<judge>, as verifiable-checker"
        )
    if errors or options.target == EVERYTHING:
        return errors
    exhibit = find_exhibit(options.target)
    if ignored := list(_ignored(exhibit, options)):
        return ignored
    pairs = [judged_by(exhibit, options)] if exhibit.judged else []
    shown = exhibit.settings.get("benchmarks", ())
    errors = [
        f"BENCHMARK={benchmark}: {exhibit.name} shows {' or '.join(shown)} (benchmarks in its YAML)"
        for benchmark, _ in pairs
        if shown and benchmark not in shown
    ]
    if exhibit.twice:
        judge = options.judge or options.of_scale["judge"]
        pairs += [(name, judge) for name in twice_judged(options)]
    return errors + [error for pair in pairs for error in _judging_errors(*pair, options)]


def taken(exhibit: Exhibit, options: Options) -> tuple[str, ...]:
    """Return the arguments that a step of the exhibit takes: its sampling, its judging or its training."""
    samples = any("scripts/sample.py" in command for command in exhibit.before)
    found = dict.fromkeys(options.arguments, bool(exhibit.sweep))
    found |= dict.fromkeys(options.judging, bool(exhibit.judged or exhibit.twice))
    found |= {word: samples for word in found if word.startswith(SAMPLING)}
    return tuple(word for word, takes in found.items() if takes)


def _ignored(exhibit: Exhibit, options: Options) -> Iterator[str]:
    """Yield what is asked for and the exhibit would pass over without a word."""
    if idle := [word for word in options.arguments if word not in taken(exhibit, options)]:
        yield f"ARGS={' '.join(idle)}: nothing that is done for {exhibit.name} takes it; leave it out"
    if options.suffix and exhibit.models == "own":
        yield f"SCALE={options.scale}: {exhibit.name} has models and data of its own; leave it out"
    if options.seeds > 1 and not exhibit.sweep:
        yield f"SEEDS={options.seeds}: nothing is trained for {exhibit.name}; leave it out"
    elif 1 < options.seeds < exhibit.seeds:
        yield f"SEEDS={options.seeds}: {exhibit.name} takes {exhibit.seeds} or more (ARGS=seed=42,43 takes fewer)"
    if options.models and exhibit.models == "own":
        yield f"MODELS={','.join(options.models)}: {exhibit.name} has models of its own (ARGS=model=... takes others)"
    benchmark, judge = judged_by(exhibit, options) if exhibit.judged else (options.benchmark, options.judge)
    for key, asked, used in (("BENCHMARK", options.benchmark, benchmark), ("JUDGE", options.judge, judge)):
        if asked not in ("", used):
            yield f"{key}={asked}: {exhibit.name} is judged by benchmark={benchmark} judge={judge} here; leave it out"


def _judging_errors(benchmark: str, judge: str, options: Options) -> list[str]:
    words = [f"benchmark={benchmark}", f"judge={judge}", *options.judging, f"outputs={options.outputs}"]
    try:
        config = compose_evaluation(words)
        errors = evaluation_errors(config, runs=False) or _data_errors(config, options)
        return errors or ([] if options.dry_run else absent(config))
    except Exception as error:  # Hydra's own errors: an unknown benchmark, judge or key
        return [f"benchmark={benchmark} judge={judge}: {str(error).splitlines()[0]}"]


def _data_errors(config: EvaluateConfig, options: Options) -> list[str]:
    """Hold the benchmark against other data than the sweep's own, where one set is asked for."""
    asked = [word for word in (*data_words(options), *options.arguments) if word.startswith("data=")]
    if not asked or "," in asked[-1]:
        return []
    run = to_run_config(compose_run(asked[-1:]))
    return build_benchmark(config, Subject(options.target, None, run)).errors()


def data_words(options: Options) -> list[str]:
    """Give the scale's settings, its data replaced by rows of the user's."""
    settings = options.of_scale["settings"]
    if not options.train_rows:
        return settings
    rows = ["data=local", f"data.train={options.train_rows}"]
    rows += [f"data.test={options.test_rows}"] if options.test_rows else []
    return rows + [setting for setting in settings if not setting.startswith("data=")]


def judged_by(exhibit: Exhibit, options: Options) -> tuple[str, str]:
    """Give (benchmark, judge) of an exhibit: its own, what was asked for, or the scale's."""
    own = exhibit.judged if isinstance(exhibit.judged, str) else ""
    benchmark = own or options.benchmark or options.of_scale["benchmark"]
    judge = options.of_scale["judges"].get(benchmark) or options.judge or options.of_scale["judge"]
    return benchmark, judge


def twice_judged(options: Options) -> list[str]:
    return [options.benchmark] if options.benchmark else list(options.of_scale["variance"])
