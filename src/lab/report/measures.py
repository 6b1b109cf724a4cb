"""Read what a study measures of a run: judged scores, last values, means over training, and sums of these."""

import math
from collections.abc import Mapping
from typing import Any

from lab.report.cells import Read, Repeats, read_metric
from lab.report.claim import LAST_SHARE, late_mean
from sgdpo.runs.records import RunView

Condition = tuple[Any, ...]
Cells = Mapping[Condition, Mapping[str, Repeats]]
# A training metric, averaged over this share of the steps: "end/loss", "mean/loss".
SHARES = {"end": LAST_SHARE, "mean": 1.0}


def reader(metric: str) -> Read:
    """Return a reader of a metric, of a mean over training, or of a sum of these, each perhaps |absolute|."""
    terms = [(term.strip("|"), term != term.strip("|")) for term in metric.split(" + ")]
    if terms == [(metric, False)]:
        place, _, name = metric.partition("/")
        if place not in SHARES:
            return read_metric(metric)
        return lambda run: (None if math.isnan(late := late_mean(run, name, SHARES[place])) else late, None)
    reads = [(reader(term), absolute) for term, absolute in terms]

    def total(run: RunView) -> tuple[float | None, None]:
        values = [(read(run)[0], absolute) for read, absolute in reads]
        if any(value is None for value, _ in values):
            return None, None
        return sum(abs(value) if absolute else value for value, absolute in values), None

    return total
