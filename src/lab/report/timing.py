"""Table 4: the time of training with two methods, and the second one's overhead, paired step by step.

Both methods see the same pairs in the same order under one seed, so step k of one is compared with step k
of the other: what a step's lengths cost cancels, and what is left is the method and the machine's noise.
Times are those of the steps in metrics.jsonl (pairs over pairs per second), without start-up and evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lab.report.cells import Repeats, group, refuse_mixtures, seeds_of
from lab.report.entries import error_fact, facts, number_entry
from lab.report.names import load_paper, method_title
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import RunView

RESAMPLES = 4000
WARM_UP = 2  # first logged steps: caches and allocators fill


@dataclass(frozen=True)
class Overhead:
    """Hold the extra time of a method over another, per cent: estimate, 95 % interval, steps it rests on."""

    percent: float
    low: float
    high: float
    steps: int


def step_seconds(run: RunView) -> dict[int, float]:
    """Give the seconds of each logged interval by its last step."""
    batch = run["settings"]["optimizer"]["batch_size"]
    seconds, before = {}, 0
    for row in run.metrics():
        if row["split"] == "train" and row.get("pairs_per_second"):
            seconds[row["step"]] = batch * (row["step"] - before) / row["pairs_per_second"]
            before = row["step"]
    return seconds


def training_seconds(run: RunView) -> tuple[float | None, float | None]:
    """Give the run's seconds in training steps and no error; (None, None) if it logged no speed."""
    seconds = step_seconds(run)
    return (sum(seconds.values()), None) if seconds else (None, None)


def overhead(base: Repeats, ours: Repeats) -> Overhead | None:
    """Estimate the overhead over the seeds that both finished, with a bootstrap over paired steps.

    The estimate is the trimmed mean (10 %) of the steps' ratios, so that a pause of the machine in one step
    does not decide it.
    """
    base_seconds = {run["seed"]: step_seconds(run) for run in base.finished}
    ratios = []
    for run in ours.finished:
        seconds, other = step_seconds(run), base_seconds.get(run["seed"], {})
        ratios += [seconds[step] / other[step] for step in sorted(seconds.keys() & other.keys())[WARM_UP:]]
    if len(ratios) < 3:
        return None
    drawn_RS = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    ends = np.percentile(stats.trim_mean(drawn_RS, 0.1, axis=1), [2.5, 97.5])
    return Overhead(*(100 * (value - 1) for value in (stats.trim_mean(ratios, 0.1), *ends)), len(ratios))


def table4(runs: Sequence[RunView], *, methods: tuple[str, ...] = ("dpo", "sgdpo")) -> Table:
    """Table 4: training times of two methods and the overhead of the second, the paper's beside."""
    refuse_mixtures(runs)
    timed, paper = [run for run in runs if run["method"] in methods], load_paper()
    cells = group(timed, lambda run: (run["model"], run["method"]))
    seeds, rows = seeds_of(timed), []
    for model in sorted({model for model, _ in cells}):
        both = [cells.get((model, method), Repeats()) for method in methods]
        times = [number_entry(repeats, training_seconds, 1, seeds, "pairs_per_second") for repeats in both]
        rows.append([paper.title(model), *times, *_overhead_entries(overhead(*both))])
    known = [paper.table4.get(method) for method in methods]
    gain = number(paper.table4["overhead"], 2, sign="+", status="paper")
    rows.append(["paper (8B, 4 x A800)", *map(_clock, known), gain, Entry()])
    base, ours = (method_title(method, runs) for method in methods)
    spread = f"{error_fact(timed)} " if len(seeds) > 1 else ""
    notes = [
        f"{spread}Overhead: trimmed mean (10 %) of {ours}'s time over {base}'s, step by step on the "
        "same pairs; interval by bootstrap over the steps. Steps only, without start-up and evaluation."
    ]
    header = ["Model", f"{base}, s", f"{ours}, s", "overhead, %", "95 % interval"]
    return Table("table4", "Table 4: training time", header, rows, 1, [*facts(timed), *notes])


def _overhead_entries(found: Overhead | None) -> list[Entry]:
    if found is None:
        return [Entry(note="needs finished runs of both methods and one seed", status="missing"), Entry()]
    low, high = (number(value, 2, sign="+").text for value in (found.low, found.high))
    note = f"over {found.steps} paired steps"
    return [number(found.percent, 2, sign="+", note=note), Entry(f"{low} to {high}")]


def _clock(seconds: float | None) -> Entry:
    if seconds is None:
        return Entry(status="unknown")
    hours, rest = divmod(int(seconds), 3600)
    return Entry(f"{hours}h{rest // 60:02d}m{rest % 60:02d}s", value=seconds, status="paper")
