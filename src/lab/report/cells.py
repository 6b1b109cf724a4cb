"""What a table shows, out of runs: repeats over seeds together, unlike settings refused, missing stays missing."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from lab.benchmarks.benchmark import number_of
from lab.benchmarks.statistics import Comparison, compare_over_seeds, mean_error, t_test
from lab.report.names import headline, lower_is_better
from sgdpo.runs.records import RunView, differences
from sgdpo.store import read_jsonl

JUDGMENTS = "judgments.jsonl"
# Reads (value, its own standard error) of a run; None for what it has not.
Read = Callable[[RunView], tuple[float | None, float | None]]
Ratio = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """Hold a number over seeds: mean, standard error (None for one seed without its own), seeds."""

    value: float
    error: float | None
    seeds: int


@dataclass(frozen=True)
class Repeats:
    """Hold the runs of one setting, one a seed, in whatever status they are."""

    runs: Sequence[RunView] = field(default_factory=tuple)

    @property
    def finished(self) -> list[RunView]:
        return [run for run in self.runs if run.status == "finished"]

    def estimate(self, read: Read) -> Estimate | None:
        """Take mean and standard error of what `read` finds, None if no run has it.

        With two seeds or more the error is over seeds; with one it is the run's own, over prompts.
        """
        found = [(value, error) for value, error in map(read, self.finished) if value is not None]
        if len(found) < 2:
            return Estimate(*found[0], 1) if found else None
        return Estimate(*mean_error([value for value, _ in found]), len(found))


def ratio_of(run: RunView) -> Ratio | None:
    """Give (chosen, rejected) of a run, None for a method without ratios."""
    ratio = run["ratio"]
    return (ratio["chosen"], ratio["rejected"]) if ratio else None


def learning_rate(run: RunView) -> float | None:
    return ((run["settings"] or {}).get("optimizer") or {}).get("lr")


def seeds_of(runs: Iterable[RunView]) -> list[int]:
    return sorted({run["seed"] for run in runs if run["seed"] is not None})


def by_model(runs: Sequence[RunView]) -> list[tuple[str, list[RunView]]]:
    """Give the runs of each model, by the model's name; runs that do not belong together are refused.

    A broken record tells no model: it stands among each one's, so that what is drawn of them can say so.
    """
    refuse_mixtures(runs)
    models = sorted({run["model"] for run in runs if run.status != "broken"})
    return [
        (model, [run for run in runs if run["model"] == model or run.status == "broken"]) for model in models
    ]


def group(runs: Iterable[RunView], key: Callable[[RunView], Any]) -> dict[Any, Repeats]:
    """Group runs by `key`; two runs of one seed in a group are refused with what differs.

    Broken records are left out: the caller reports them.
    """
    groups: dict[Any, dict[Any, RunView]] = {}
    for run in runs:
        if run.status == "broken":
            continue
        other = groups.setdefault(key(run), {}).setdefault(run["seed"], run)
        if other is not run:
            raise ValueError(
                f"two runs for one cell {key(run)}, seed {run['seed']}: {other.name} and {run.name} "
                f"({differences(other['settings'], run['settings'])}). Move one of them to another experiment."
            )
    return {name: Repeats(tuple(runs[seed] for seed in sorted(runs))) for name, runs in groups.items()}


def refuse_mixtures(*groups: Sequence[RunView]) -> None:
    """Refuse to put runs of different data or package versions into one table, naming the difference.

    groups: the runs of one are of the same data. Its fingerprint depends on the tokenizer, so it is compared within a
    model and phase; a run that trains nothing has read none.
    """
    finished = [[run for run in runs if run.status == "finished"] for runs in groups]
    _same([*chain(*finished)], "package versions", lambda run: dict(run["versions"] or {}))
    for runs in finished:
        trained = [run for run in runs if run["steps"] != 0]
        _same(trained, "data settings", lambda run: (run["settings"] or {}).get("data") or {})
        for kind in {(run["model"], run["phase"]) for run in trained}:
            members = [run for run in trained if (run["model"], run["phase"]) == kind]
            _same(members, "data", lambda run: {"fingerprint": (run["data"] or {}).get("fingerprint")})


def refuse_unlike_judgments(runs: Sequence[RunView], key: str) -> None:
    """Refuse results of one evaluation that were sampled or judged differently, naming the difference.

    key: the evaluation, or a metric of it; a metric of training is of none.
    """
    key = key.partition(":")[0]
    judged = [run for run in runs if run.status == "finished" and key in (run["eval"] or {})]
    how = ("n", "identity", "sampling", "judged_by")
    _same(judged, f"settings of {key}", lambda run: {name: run["eval"][key].get(name) for name in how})


def _same(runs: Sequence[RunView], what: str, read: Callable[[RunView], Mapping[str, Any]]) -> None:
    for run in runs[1:]:
        if read(run) != read(runs[0]):
            raise ValueError(
                f"different {what} in one table: {run.experiment}/{runs[0].name} and {run.name} "
                f"({differences(read(runs[0]), read(run))}). Run one of them again, or move it away."
            )


def last_metric(run: RunView, name: str) -> float | None:
    """Read a number of a run: "eval/rewards/margins" (final metrics) or "verifiable-checker:win_rate"."""
    place, separator = ("eval", ":") if ":" in name else ("final", "/")
    key, _, metric = name.partition(separator)
    value = ((run[place] or {}).get(key) or {}).get(metric)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def read_metric(name: str) -> Read:
    """Make a reader of a metric and its own standard error (evaluations have one: `<name>_se`)."""
    error = f"{name.removesuffix('_mean')}_se" if ":" in name else None
    return lambda run: (last_metric(run, name), last_metric(run, error) if error else None)


def default_metric(runs: Sequence[RunView], field: str | None = None) -> str:
    """Name what to show where nothing is asked for: a number of the evaluation that most runs have.

    field: which number of it; None, or one that it does not have: the benchmark's headline. Runs without evaluation:
    their held-out accuracy.
    """
    counts = Counter(key for run in runs for key in (run["eval"] or {}))
    if not counts:
        return "eval/rewards/accuracies"
    key = min(counts, key=lambda key: (-counts[key], key))
    asked = f"{key}:{field}"
    return asked if any(last_metric(run, asked) is not None for run in runs) else f"{key}:{headline(key)}"


def evaluation_keys(runs: Iterable[RunView]) -> list[str]:
    """List the evaluations that any of the runs has, e.g. ["verifiable-checker"]."""
    return sorted({key for run in runs for key in (run["eval"] or {})})


def with_evaluation(runs: Sequence[RunView], key: str) -> list[RunView]:
    """Return the runs with the results of one evaluation alone. Raise ValueError if no run has it."""
    if key not in (found := evaluation_keys(runs)):
        raise ValueError(f"no run has the evaluation {key!r}; found: {', '.join(found) or 'none'}")
    kept = [{k: v for k, v in (run["eval"] or {}).items() if k == key} for run in runs]
    return [replace(run, record={**run.record, "eval": own}) for run, own in zip(runs, kept, strict=True)]


def choose_evaluation(runs: Sequence[RunView], benchmarks: Sequence[str]) -> str:
    """Name the evaluation a table reads: the only one of the first benchmark with any.

    Raises ValueError if there is none (with the command that makes it), several to choose from, or results that were
    not sampled and judged alike.
    """
    if not benchmarks:
        raise ValueError("benchmarks is empty: name one that the table is to be read from")
    for benchmark in benchmarks:
        if key := _the_only(runs, benchmark):
            refuse_unlike_judgments(runs, key)
            return key
    names = " ".join(str(run.folder) for run in runs[:2])
    others = ", ".join(evaluation_keys(runs))
    raise ValueError(
        f"these runs are not evaluated yet{f' but by {others}' if others else ''}. Make it: "
        f"python scripts/evaluate.py {names} ... benchmark={benchmarks[0]}"
    )


def measures_of(runs: Sequence[RunView], measures: Mapping[str, str]) -> dict[str, str]:
    """Name metrics of an evaluation as these runs have them: "verifiable-checker:..." may be of changed settings."""
    found, there = {}, evaluation_keys(runs)
    for name, metric in measures.items():
        key, separator, field = metric.partition(":")
        usual = not separator or key in there
        found[name] = metric if usual else f"{_the_only(runs, key) or key}:{field}"
    return found


def _the_only(runs: Sequence[RunView], name: str) -> str | None:
    keys = [key for key in evaluation_keys(runs) if key.startswith(f"{name}-")]
    if len(keys) > 1:
        raise ValueError(f"several evaluations: choose one with evaluation={' or evaluation='.join(keys)}")
    return keys[0] if keys else None


def by_prompt(run: RunView, key: str, field: str) -> dict[str, float]:
    """Give a field of each prompt's judgment of a run: `score`, or `preference` (1 won, 0 lost over the baseline).

    A run that was trained again keeps the files of its earlier results, but not the results: it has none.
    """
    path = run.folder / "eval" / key / JUDGMENTS
    rows = read_jsonl(path) if key in (run["eval"] or {}) and path.is_file() else []
    values = {str(row["prompt_id"]): number_of(row, field) for row in rows}
    return {prompt: float(value) for prompt, value in values.items() if value is not None}


def compare_preferences(ours: Repeats, theirs: Repeats, key: str) -> Comparison | None:
    """Compare win rates over the training seeds and the prompts that both have, None without any."""
    scores_2SP = paired_scores(ours, theirs, key, "preference")
    return compare_over_seeds(*scores_2SP) if scores_2SP else None


def paired_scores(ours: Repeats, theirs: Repeats, key: str, field: str) -> list[list[list[float]]] | None:
    """Return (ours, theirs) x seeds x prompts of a judgments' field, where both have them; None without any."""
    mine, other = ({run["seed"]: run for run in repeats.finished} for repeats in (ours, theirs))
    shared = [seed for seed in mine if seed in other]
    pairs = [tuple(by_prompt(side[seed], key, field) for side in (mine, other)) for seed in shared]
    pairs = [pair for pair in pairs if all(pair)]
    prompts = sorted(set.intersection(*(set(one) & set(two) for one, two in pairs))) if pairs else []
    if not prompts:
        return None
    return [[[one[prompt] for prompt in prompts] for one in side] for side in zip(*pairs, strict=True)]


@dataclass(frozen=True)
class Selection:
    """Hold the best and the second ratio of a grid.

    difference: best less second. p_value: two-sided, paired over prompts (win rates) or over seeds; None if
    neither can be paired.
    """

    best: Ratio
    best_estimate: Estimate
    second: Ratio | None = None
    second_estimate: Estimate | None = None
    difference: float | None = None
    p_value: float | None = None
    paired_over: str | None = None


def comparable(cells: Mapping[Any, Repeats], metric: str) -> tuple[dict[Any, Estimate], dict[Any, str]]:
    """Give the estimates of the cells that have the metric on all seeds of the grid, and how many the others have.

    A cell that failed on a seed is worse than one that did not: the seeds that are left may be its lucky ones.
    """
    seeds = len(seeds_of(run for repeats in cells.values() for run in repeats.runs))
    found = {key: repeats.estimate(read_metric(metric)) for key, repeats in cells.items()}
    whole = {key: estimate for key, estimate in found.items() if estimate and estimate.seeds == seeds}
    lacking = {key: estimate.seeds if estimate else 0 for key, estimate in found.items() if key not in whole}
    return whole, {key: f"{count} of {seeds} seeds" for key, count in lacking.items()}


def select_ratio(cells: Mapping[Ratio, Repeats], metric: str) -> Selection | None:
    """Select as the paper's table 1 does: the grid's best by mean over seeds, None if no cell has the metric."""
    found, _ = comparable(cells, metric)
    sign = -1.0 if lower_is_better(metric) else 1.0
    # Equal values: the smaller ratios, so that the choice does not depend on the order of the files.
    ranked = [ratio for _, ratio in sorted((-sign * est.value, ratio) for ratio, est in found.items())]
    if len(ranked) < 2:
        return Selection(ranked[0], found[ranked[0]]) if ranked else None
    best, second = ranked[:2]
    return Selection(best, found[best], second, found[second], *paired(cells[best], cells[second], metric))


def paired(ours: Repeats, theirs: Repeats, metric: str) -> tuple[float | None, float | None, str | None]:
    """Give (difference, p, over what it is paired): seeds and prompts for win rates, else seeds."""
    if metric.endswith(":win_rate"):
        result = compare_preferences(ours, theirs, metric.partition(":")[0])
        if result:
            over = "seeds and prompts" if result.seeds > 1 else "prompts"
            return 100 * result.difference.value, result.p_value, over
    mine, other = (
        {run["seed"]: last_metric(run, metric) for run in side.finished} for side in (ours, theirs)
    )
    shared = [seed for seed in mine if None not in (mine[seed], other.get(seed))]
    differences = np.array([mine[seed] - other[seed] for seed in shared])
    if len(shared) < 2:
        return (float(differences[0]), None, None) if shared else (None, None, None)
    interval, p_value = t_test(differences)
    return interval.value, p_value, "seeds"
