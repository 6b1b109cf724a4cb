"""Select ratios as the paper's table 1 does: the best cell of the grid by a metric, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from lab.report.cells import Estimate, Repeats, compare_preferences, last_metric, read_metric
from lab.report.names import headline, lower_is_better
from sgdpo.runs.records import RunView

Ratio = tuple[float, float]


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


def default_metric(runs: Sequence[RunView], field: str | None = None) -> str:
    """Name what to show where nothing is asked for: a number of the evaluation that most runs have.

    field: which number of it; None: the benchmark's headline. Runs without evaluation: their held-out accuracy.
    """
    counts = Counter(key for run in runs for key in (run["eval"] or {}))
    if not counts:
        return "eval/rewards/accuracies"
    key = min(counts, key=lambda key: (-counts[key], key))
    return f"{key}:{field or headline(key)}"


def select_ratio(cells: Mapping[Ratio, Repeats], metric: str) -> Selection | None:
    """Select among the grid's cells by mean over seeds, None if no cell has the metric."""
    found = {ratio: repeats.estimate(read_metric(metric)) for ratio, repeats in cells.items()}
    sign = -1.0 if lower_is_better(metric) else 1.0
    # Equal values: the smaller ratios, so that the choice does not depend on the order of the files.
    ranked = sorted((-sign * estimate.value, ratio) for ratio, estimate in found.items() if estimate)
    if not ranked:
        return None
    best = ranked[0][1]
    if len(ranked) == 1:
        return Selection(best, found[best])
    second = ranked[1][1]
    return Selection(best, found[best], second, found[second], *paired(cells[best], cells[second], metric))


def paired(ours: Repeats, theirs: Repeats, metric: str) -> tuple[float | None, float | None, str | None]:
    """Give (difference, p, over what it is paired): seeds and prompts for win rates, else seeds."""
    if metric.endswith(":win_rate"):
        result = compare_preferences(ours, theirs, metric.partition(":")[0])
        if result:
            over = "seeds and prompts" if result.seeds > 1 else "prompts"
            return 100 * result.difference.value, result.p_value, over
    mine = {run["seed"]: last_metric(run, metric) for run in ours.finished}
    other = {run["seed"]: last_metric(run, metric) for run in theirs.finished}
    seeds = [seed for seed in mine if mine[seed] is not None and other.get(seed) is not None]
    if not seeds:
        return None, None, None
    differences = [mine[seed] - other[seed] for seed in seeds]
    mean = sum(differences) / len(differences)
    if len(seeds) < 2:
        return mean, None, None
    if max(differences) == min(differences):
        return mean, 1.0 if mean == 0 else 0.0, "seeds"
    return mean, float(stats.ttest_1samp(differences, 0.0).pvalue), "seeds"
