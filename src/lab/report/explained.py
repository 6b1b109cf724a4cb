"""What explains quality over many methods: rank correlations of a score with columns that are known without a judge."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lab.report.cells import Estimate, Repeats, measures_of
from lab.report.measures import Cells, reader
from lab.report.studies import conditions, refuse_unnamed, study, title
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import RunView

RESAMPLES = 2000
UNRANKED = Entry(note="no ranks: one of the two is the same for all arms", status="missing")


def explained(
    runs: Sequence[RunView],
    *,
    arms: dict[str, dict[str, Any]],
    measures: dict[str, str],
    tested: tuple[str, ...],
    predictors: tuple[str, ...],
    question: str,
    expected: str,
    contrasts: dict[str, dict[str, float]],
    each: tuple[str, ...] = ("data.name",),
    bounds: dict[str, float] | None = None,
    matched: dict[str, dict[str, Any]] | None = None,
) -> list[Table]:
    """Show a study, and the rank correlation of its first tested measure with each predictor."""
    refuse_unnamed("measures", measures, {"predictors": predictors, "tested": tested})
    measures = measures_of(runs, measures)
    cells = conditions(runs, arms, each)
    works = study(runs, question=question, expected=expected, arms=arms, contrasts=contrasts, measures=measures,
                  tested=tested, each=each, bounds=bounds, matched=matched)  # fmt: skip
    return [_correlations(cells, measures, tested[0], predictors), *works]


def _correlations(cells: Cells, measures: Mapping[str, str], score: str, predictors: Sequence[str]) -> Table:
    rows, seeds = [], set()
    for condition, own in cells.items():
        for predictor in predictors:
            means = [_means(repeats, measures[predictor], measures[score]) for repeats in own.values()]
            known = [pair for pair in means if pair]
            pairs = np.array([[each.value for each in pair] for pair in known])
            if len(pairs) > 3:
                seeds |= {each.seeds for pair in known for each in pair}
                numbers = [UNRANKED, Entry(), Entry()]
                if np.ptp(pairs, axis=0).all():
                    numbers = [number(each, 2, sign="+") for each in _spearman(pairs)]
                rows.append([title(condition), predictor, *numbers, str(len(pairs))])
    told = [row for row in rows if row[2].value is not None]
    found = "; ".join(f"{row[0]}, {row[1]} {row[2].text} [{row[3].text}, {row[4].text}]" for row in told)
    facts = [
        f"Found: rank correlation of the {score} with {found or 'nothing yet'}.",
        f"Spearman's, over arms, each the mean of {' or '.join(map(str, sorted(seeds))) or 'no'} seeds; 95 % "
        "interval: bootstrap over arms.",
    ]
    header = ["Condition", "explained by", "rank correlation", "from", "to", "arms"]
    return Table("-correlations", f"What the {score} goes with", header, rows, 2, facts)


def _means(repeats: Repeats, *metrics: str) -> list[Estimate] | None:
    found = [repeats.estimate(reader(metric)) for metric in metrics]
    return None if None in found else [each for each in found if each]


def _spearman(pair_A2: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the correlation and its interval's ends; neither column is the same for all arms."""
    draws, found = np.random.default_rng(0), []
    while len(found) < RESAMPLES:
        drawn_A2 = pair_A2[draws.integers(0, len(pair_A2), len(pair_A2))]
        if (np.ptp(drawn_A2, axis=0) > 0).all():
            found.append(spearmanr(drawn_A2).statistic)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(spearmanr(pair_A2).statistic), float(low), float(high)
