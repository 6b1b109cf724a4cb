"""Select ratios as the paper's table 1 does: the best cell of the grid by a metric, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from lab.report.cells import Cell, Estimate, last_metric, paired_p_value, read_metric

LOWER_IS_BETTER = ("loss",)
Ratio = tuple[float, float]


@dataclass(frozen=True)
class Selection:
    """Hold the best and the second ratio of a grid.

    difference: best less second. p_value: two-sided, paired over prompts (win rates) or over seeds; None if
    neither can be paired.
    """

    best: Ratio
    best_estimate: Estimate
    second: Ratio | None
    second_estimate: Estimate | None
    difference: float | None
    p_value: float | None
    paired_over: str | None


def select_ratio(cells: Mapping[Ratio, Cell], metric: str) -> Selection | None:
    """Return the selection over the grid's cells by mean over seeds, None if no cell has the metric."""
    found = {ratio: cell.estimate(read_metric(metric)) for ratio, cell in cells.items()}
    sign = -1.0 if metric.rsplit("/", 1)[-1] in LOWER_IS_BETTER else 1.0
    # Equal values: the smaller ratios, so that the choice does not depend on the order of the files.
    ranked = sorted((-sign * estimate.value, ratio) for ratio, estimate in found.items() if estimate)
    if not ranked:
        return None
    best = ranked[0][1]
    if len(ranked) == 1:
        return Selection(best, found[best], None, None, None, None, None)
    second = ranked[1][1]
    difference, p_value, over = paired(cells[best], cells[second], metric)
    return Selection(best, found[best], second, found[second], difference, p_value, over)


def paired(ours: Cell, theirs: Cell, metric: str) -> tuple[float | None, float | None, str | None]:
    """Return (difference, p, "prompts" or "seeds"): paired over prompts for win rates, else over seeds."""
    if metric.endswith(":win_rate"):
        result = paired_p_value(ours, theirs, metric.partition(":")[0])
        if result:
            return (*result, "prompts")
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
