"""What things are called and in which order they are shown: the paper's numbers, methods, models, metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from sgdpo.config.compose import written
from sgdpo.config.metrics import known_metrics, metric_facts
from sgdpo.config.metrics import lower_is_better as logged_lower
from sgdpo.places import CONF
from sgdpo.runs.records import RunView

# Okabe and Ito's colours again, for methods whose YAML names none.
SPARE_COLOURS = ("#B34700", "#00609A", "#7A6A00", "#A0447C", "#2E6B5E", "#555A63")


@dataclass(frozen=True)
class Paper:
    """Hold the paper's tables, the names of its models, and the order in which its methods stand."""

    titles: dict[str, str]
    stands_for: dict[str, str]
    table1: dict[str, list[float] | None]
    default_ratio: list[float]
    table2: dict[str, dict[str, Any]]
    table3: dict[str, dict[str, list[float]]]
    table4: dict[str, float]
    mtbench: dict[str, float]
    figure2: list[str]

    @property
    def methods(self) -> list[str]:
        return list(next(iter(self.table3.values())))

    def title(self, model: str) -> str:
        return self.titles.get(model, model)

    def beside(self, model: str) -> str | None:
        """Name the paper's model whose numbers stand beside `model`: itself, or the one it stands for."""
        name = self.stands_for.get(model, model)
        return name if name in self.table1 else None


@cache
def load_paper() -> Paper:
    return Paper(**_read("report/paper"))


@cache
def _read(name: str) -> dict[str, Any]:
    path = CONF / f"{name}.yaml"
    return (yaml.safe_load(path.read_text("utf-8")) or {}) if path.is_file() else {}


def method_title(method: str, runs: Iterable[RunView] = ()) -> str:
    """Name a method for people: as a run's record has it, else its YAML here, else in capitals."""
    return str(_method(method, runs).get("title") or method.upper())


def method_colour(method: str, runs: Sequence[RunView] = ()) -> str:
    """Give a method's colour, "#RRGGBB": its own, else a spare one by its place among those without."""
    if colour := _method(method, runs).get("colour"):
        return str(colour)
    methods = {run["method"] for run in runs if run["method"]}
    others = sorted(name for name in methods if not _method(name, runs).get("colour"))
    return SPARE_COLOURS[(others.index(method) if method in others else 0) % len(SPARE_COLOURS)]


def _method(method: str, runs: Iterable[RunView]) -> Mapping[str, Any]:
    own = (run["settings"]["method"] for run in runs if run["method"] == method and run["settings"])
    recorded = next(own, {})
    return {**_read(f"method/{method}"), **{key: value for key, value in recorded.items() if value}}


def methods_in_order(runs: Iterable[RunView], first: Sequence[str]) -> list[str]:
    """List the methods to show: `first` (the paper's, whether they ran or not), then the others that ran."""
    ran = {run["method"] for run in runs if run["method"] and run["phase"] != "sft"}
    return [*first, *sorted(ran - set(first))]


def metric_title(metric: str) -> str:
    """Name a metric for people: "eval/rewards/margins", or "<benchmark>-<judge>:<field>" by the benchmark's YAML."""
    return str(_metric(metric).get("title", metric))


def metrics_in_order() -> list[str]:
    """List the metrics that matter, in the order that results show them (conf/metrics.yaml)."""
    return list(known_metrics())


def score_title(evaluation: str) -> str:
    """Name the mean score of an evaluation with its scale: "score, 0–10"."""
    return metric_title(f"{evaluation}:score_mean").removeprefix("checker ")


def lower_is_better(metric: str) -> bool:
    """Tell which way a metric is better: a run's own, or a field of an evaluation as its benchmark says."""
    return _metric(metric).get("better") == "lower" if ":" in metric else logged_lower(metric)


def headline(evaluation: str) -> str:
    """Name the number that says most of an evaluation ("<benchmark>-<judge>"), by the benchmark's YAML."""
    return str(_benchmark(evaluation).get("headline", "win_rate"))


def about(evaluation: str) -> str:
    """Say how an evaluation's numbers are to be read, by the benchmark's YAML; "" if it says nothing."""
    return str(_benchmark(evaluation).get("about") or "")


def _metric(metric: str) -> Mapping[str, Any]:
    evaluation, _, field = metric.partition(":")
    if not field:
        return metric_facts(metric)
    maps = {"title": "metrics", "better": "better"}
    said = {key: (_benchmark(evaluation).get(name) or {}).get(field) for key, name in maps.items()}
    return {key: value for key, value in said.items() if value}


def _benchmark(evaluation: str) -> Mapping[str, Any]:
    """Read the YAML of the benchmark whose name is the longest beginning of the evaluation's."""
    parts = evaluation.split("-")
    names = ("-".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((found for name in names if (found := written("benchmark", name))), {})
