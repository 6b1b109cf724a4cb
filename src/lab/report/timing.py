"""Table 4: the time of training with DPO and SGDPO, and the overhead, paired step by step.

Both methods see the same pairs in the same order under one seed, so step k of one is compared with step k
of the other: what a step's lengths cost cancels, and what is left is the method and the machine's noise.
Times are those of the steps in metrics.jsonl (pairs over pairs per second), without start-up and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lab.report.cells import Cell, group, refuse_mixtures
from lab.report.entries import error_fact, facts, number_entry, text
from lab.report.paper import Paper
from sgdpo.drawing.table import Entry, Table
from sgdpo.runs.records import RunView

RESAMPLES = 4000
WARM_UP = 2  # first logged steps: caches and allocators fill


@dataclass(frozen=True)
class Overhead:
    """Hold SGDPO's extra time over DPO, per cent: estimate, 95 % interval, steps it rests on."""

    percent: float
    low: float
    high: float
    steps: int


def step_seconds(run: RunView) -> dict[int, float]:
    """Return the seconds of each logged interval by its last step."""
    batch = run["settings"]["optimizer"]["batch_size"]
    seconds, before = {}, 0
    for row in run.metrics():
        if row["split"] == "train" and row.get("pairs_per_second"):
            seconds[row["step"]] = batch * (row["step"] - before) / row["pairs_per_second"]
            before = row["step"]
    return seconds


def training_seconds(run: RunView) -> tuple[float | None, float | None]:
    """Return the run's seconds in training steps and no error; (None, None) if it logged no speed."""
    seconds = step_seconds(run)
    return (sum(seconds.values()), None) if seconds else (None, None)


def overhead(dpo: Cell, sgdpo: Cell) -> Overhead | None:
    """Return the overhead over the seeds that both finished, with a bootstrap over paired steps.

    The estimate is the trimmed mean (10 %) of the steps' ratios, so that a pause of the machine in one step
    does not decide it.
    """
    theirs = {run["seed"]: step_seconds(run) for run in dpo.finished}
    pairs = []
    for run in sgdpo.finished:
        ours, other = step_seconds(run), theirs.get(run["seed"], {})
        steps = sorted(ours.keys() & other.keys())[WARM_UP:]
        pairs += [(other[step], ours[step]) for step in steps]
    if len(pairs) < 3:
        return None
    ratio_S = np.array([ours / other for other, ours in pairs])
    drawn_RS = np.random.default_rng(0).choice(ratio_S, (RESAMPLES, len(ratio_S)))
    low, high = np.percentile(stats.trim_mean(drawn_RS, 0.1, axis=1), [2.5, 97.5])
    return Overhead(
        *(100 * (value - 1) for value in (stats.trim_mean(ratio_S, 0.1), low, high)), len(ratio_S)
    )


def table4(runs: Sequence[RunView], paper: Paper) -> Table:
    """Return training times of DPO and SGDPO and the overhead with its 95 % interval, the paper's beside."""
    refuse_mixtures(runs)
    pair = [run for run in runs if run["method"] in ("dpo", "sgdpo")]
    cells = group(pair, lambda run: (run["model"], run["method"]))
    seeds = sorted({run["seed"] for run in pair if run["status"]})
    rows = []
    for model in sorted({model for model, _ in cells}):
        row = [text(paper.title(model))]
        for method in ("dpo", "sgdpo"):
            row.append(
                number_entry(cells.get((model, method)), training_seconds, 1, seeds, "pairs_per_second")
            )
        rows.append([*row, *_overhead_entries(cells, model)])
    known = paper.table4
    rows.append([text("paper (8B, 4 x A800)"), *(_clock(known[m]) for m in ("dpo", "sgdpo"))])
    rows[-1] += [Entry(f"{known['overhead']:+.2f}", value=known["overhead"], status="paper"), Entry()]
    header = ["Model", "DPO, s", "SGDPO, s", "overhead, %", "95 % interval"]
    spread = f"{error_fact(pair)} " if len(seeds) > 1 else ""
    notes = [
        f"{spread}Overhead: trimmed mean (10 %) of SGDPO's time over DPO's, step by step on the "
        "same pairs; interval by bootstrap over the steps. Steps only, without start-up and evaluation."
    ]
    return Table("table4", "Table 4: training time", header, rows, 1, [*facts(pair, paper, None), *notes])


def _overhead_entries(cells: Mapping[tuple[str, str], Cell], model: str) -> list[Entry]:
    dpo, sgdpo = cells.get((model, "dpo")), cells.get((model, "sgdpo"))
    found = overhead(dpo, sgdpo) if dpo and sgdpo else None
    if found is None:
        return [Entry(note="needs finished DPO and SGDPO runs of one seed", status="missing"), Entry()]
    note = f"over {found.steps} paired steps"
    return [
        Entry(f"{found.percent:+.2f}".replace("-", "−"), note=note, value=found.percent, status="finished"),
        text(f"{found.low:+.2f} to {found.high:+.2f}".replace("-", "−")),
    ]


def _clock(seconds: float) -> Entry:
    hours, rest = divmod(int(seconds), 3600)
    return Entry(f"{hours}h{rest // 60:02d}m{rest % 60:02d}s", value=seconds, status="paper")
