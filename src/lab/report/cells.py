"""Group runs into the cells of a table: seeds together, unlike settings refused, missing stays missing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lab.benchmarks.statistics import compare, mean_error
from sgdpo.runs.records import RunView, differences

JUDGMENTS = "judgments.jsonl"


@dataclass(frozen=True)
class Estimate:
    """Hold a number over seeds: mean, standard error (None for one seed without its own), seeds."""

    value: float
    error: float | None
    seeds: int
    over: str = "seeds"


@dataclass(frozen=True)
class Cell:
    """Hold the runs of one cell, one a seed, in whatever status they are."""

    runs: Sequence[RunView] = field(default_factory=tuple)

    @property
    def finished(self) -> list[RunView]:
        """Return the runs that a number may come from."""
        return [run for run in self.runs if run.status == "finished"]

    @property
    def failed(self) -> list[RunView]:
        """Return the runs that failed."""
        return [run for run in self.runs if run.status == "failed"]

    def estimate(self, read: Callable[[RunView], tuple[float | None, float | None]]) -> Estimate | None:
        """Return mean and standard error of `read(run) -> (value, its own error)`, None if no run has it.

        With two seeds or more the error is over seeds; with one it is the run's own, over prompts.
        """
        found = [(value, error) for value, error in map(read, self.finished) if value is not None]
        if not found:
            return None
        values = [value for value, _ in found]
        if len(values) == 1:
            return Estimate(values[0], found[0][1], 1, "prompts")
        mean, error = mean_error(values)
        return Estimate(mean, error, len(values))


def ratio_of(run: RunView) -> tuple[float, float] | None:
    """Return (chosen, rejected) of a run, None for a method without ratios."""
    ratio = run["ratio"]
    return (ratio["chosen"], ratio["rejected"]) if ratio else None


def learning_rate(run: RunView) -> float | None:
    """Return the peak learning rate of a run."""
    return ((run["settings"] or {}).get("optimizer") or {}).get("lr")


def group(runs: Iterable[RunView], key: Callable[[RunView], Any]) -> dict[Any, Cell]:
    """Group runs into cells by `key`; two runs of one seed in a cell are refused with what differs.

    Broken records are left out: the caller reports them.
    """
    cells: dict[Any, list[RunView]] = {}
    for run in runs:
        if run.status != "broken":
            cells.setdefault(key(run), []).append(run)
    for name, found in cells.items():
        _refuse_doubles(name, found)
    return {name: Cell(tuple(sorted(found, key=lambda run: run["seed"]))) for name, found in cells.items()}


def _refuse_doubles(name: Any, runs: Sequence[RunView]) -> None:
    by_seed: dict[Any, RunView] = {}
    for run in runs:
        other = by_seed.setdefault(run["seed"], run)
        if other is not run:
            what = differences(other["settings"], run["settings"])
            raise ValueError(
                f"two runs for one cell {name}, seed {run['seed']}: {other.name} and {run.name} "
                f"({what}). Move one of them to another experiment."
            )


def refuse_mixtures(runs: Sequence[RunView]) -> None:
    """Refuse to put runs of different data or package versions into one table, naming the difference.

    The data's fingerprint depends on the tokenizer, so it is compared within a model and phase.
    """
    finished = [run for run in runs if run.status == "finished"]
    _same(finished, "package versions", lambda run: dict(run["versions"] or {}))
    _same(finished, "data settings", lambda run: (run["settings"] or {}).get("data") or {})
    groups: dict[Any, list[RunView]] = {}
    for run in finished:
        groups.setdefault((run["model"], run["phase"]), []).append(run)
    for found in groups.values():
        _same(found, "data", lambda run: {"fingerprint": (run["data"] or {}).get("fingerprint")})


def refuse_unlike_judgments(runs: Sequence[RunView], key: str) -> None:
    """Refuse results of one evaluation that were sampled or judged differently, naming the difference."""
    judged = [run for run in runs if run.status == "finished" and key in (run["eval"] or {})]
    how = ("n", "sampling", "judged_by")
    _same(judged, f"settings of {key}", lambda run: {name: run["eval"][key].get(name) for name in how})


def _same(runs: Sequence[RunView], what: str, read: Callable[[RunView], Mapping[str, Any]]) -> None:
    for run in runs[1:]:
        if read(run) != read(runs[0]):
            raise ValueError(
                f"different {what} in one table: {run.experiment}/{runs[0].name} and {run.name} "
                f"({differences(read(runs[0]), read(run))}). Run one of them again, or move it away."
            )


def last_metric(run: RunView, name: str) -> float | None:
    """Return a number of a run: "eval/rewards/margins" (final metrics) or "verifiable-checker:win_rate"."""
    if ":" in name:
        key, _, field_name = name.partition(":")
        value = ((run["eval"] or {}).get(key) or {}).get(field_name)
    else:
        split, _, metric = name.partition("/")
        value = ((run["final"] or {}).get(split) or {}).get(metric)
    return value if value is not None and math.isfinite(value) else None


def read_metric(name: str) -> Callable[[RunView], tuple[float | None, float | None]]:
    """Return a reader of a metric and its own standard error (evaluations have one: `<name>_se`)."""
    error = f"{name.removesuffix('_mean')}_se" if ":" in name else None
    return lambda run: (last_metric(run, name), last_metric(run, error) if error else None)


def evaluation_keys(runs: Iterable[RunView]) -> list[str]:
    """Return the evaluations that any of the runs has, e.g. ["verifiable-checker"]."""
    return sorted({key for run in runs for key in (run["eval"] or {})})


def choose_evaluation(runs: Sequence[RunView], wanted: str | None, benchmarks: Sequence[str]) -> str:
    """Return the evaluation a table reads: the wanted one, or the only one of the first benchmark with any.

    Raises ValueError if there is none (with the command that makes it) or several judges to choose from.
    """
    found = evaluation_keys(runs)
    if wanted:
        if wanted in found:
            return wanted
        raise ValueError(f"no run has the evaluation {wanted!r}; found: {', '.join(found) or 'none'}")
    for benchmark in benchmarks:
        keys = [key for key in found if key.startswith(f"{benchmark}-")]
        if len(keys) > 1:
            raise ValueError(f"several judges: choose one with --evaluation {' or '.join(keys)}")
        if keys:
            return keys[0]
    names = " ".join(str(run.folder) for run in runs[:2])
    raise ValueError(
        f"these runs are not evaluated yet. Make it: python scripts/evaluate.py {names} ... "
        f"benchmark={benchmarks[0]}"
    )


def preferences_by_prompt(cell: Cell, key: str) -> dict[str, float]:
    """Return each prompt's preference (1 won, 0 lost over the baseline), mean over the cell's seeds."""
    found: dict[str, list[float]] = {}
    for run in cell.finished:
        for row in _judgments(run.folder / "eval" / key / JUDGMENTS):
            if row.get("preference") is not None:
                found.setdefault(str(row["prompt_id"]), []).append(float(row["preference"]))
    return {prompt: float(np.mean(values)) for prompt, values in found.items()}


def _judgments(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def paired_p_value(ours: Cell, theirs: Cell, key: str) -> tuple[float, float] | None:
    """Return (difference in win rate in points, two-sided p) over the prompts both have, None without any."""
    mine, other = preferences_by_prompt(ours, key), preferences_by_prompt(theirs, key)
    shared = sorted(mine.keys() & other.keys())
    if not shared:
        return None
    result = compare([mine[prompt] for prompt in shared], [other[prompt] for prompt in shared])
    return 100 * result.difference.value, result.p_value
