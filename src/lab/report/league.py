"""The league: every method under the same tuning budget, against one of them, and quality beside the two scalars.

Each method's setting is chosen on tuning seeds by one half of the prompts; its runs here are of fresh seeds, judged on
the other half. Differences are paired over seeds and prompts; Holm's correction is over all methods, for the tests of a
difference and for those of none (TOST within a bound) apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lab.benchmarks.statistics import (
    LEVEL,
    Comparison,
    compare_over_seeds,
    equivalence,
    holm,
    t_test,
    verdict,
)
from lab.report.cells import (
    Repeats,
    comparable,
    evaluation_keys,
    group,
    last_metric,
    paired_scores,
    read_metric,
    refuse_mixtures,
    refuse_unlike_judgments,
    seeds_of,
)
from lab.report.entries import error_fact, facts, figure_facts, number_entry, one_seed
from lab.report.names import (
    load_paper,
    lower_is_better,
    method_colour,
    method_title,
    methods_in_order,
    score_title,
)
from lab.report.panels import band, draw_band, say
from sgdpo.drawing.style import (
    QUIET,
    Picture,
    captioned,
    label_column,
    label_end,
    label_points,
    styled,
)
from sgdpo.drawing.table import Entry, Table, number
from sgdpo.runs.records import RunView, flatten, read_runs

TUNING = "tuning-"  # before an experiment: the experiment that its settings are chosen in
LOG_RATIO = "eval/incentive/log_ratio"
CROWDED = 0.02  # so near to 0, as a share of the axis, many methods stand above each other


def best_values(runs: Sequence[RunView], key: str, metric: str) -> dict[str, Any]:
    """Choose of each method the value of `key` with the best mean over seeds; the smaller of equal ones."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    # SFT runs of one value are what the others start from; of several, they are tuned themselves.
    tuned_too = len({flatten(run["settings"])[key] for run in runs if run["phase"] == "sft"}) > 1
    own = [run for run in runs if run["phase"] != "sft" or tuned_too]
    refuse_unlike_judgments(own, metric)
    cells = group(own, lambda run: (run["method"], flatten(run["settings"])[key]))
    found: dict[str, list[tuple[float, Any]]] = {}
    for (method, value), estimate in comparable(cells, metric)[0].items():
        found.setdefault(method, []).append((-sign * estimate.value, value))
    return {method: min(values)[1] for method, values in sorted(found.items())}


def league(
    runs: Sequence[RunView], *, question: str, expected: str, baseline: str = "dpo", bound: float = 0.2
) -> list[Table | Picture]:
    """Rank the methods in a table with every difference from the baseline, and draw quality beside log(dw/dl).

    bound: a difference that is surely smaller is none, in points of the score.
    """
    own, broken = _trained(runs), [run for run in runs if run.status == "broken"]
    refuse_mixtures(own)
    keys = evaluation_keys(own)
    if len(keys) != 1:
        raise ValueError(f"the league needs runs judged by one benchmark; found: {', '.join(keys) or 'none'}")
    refuse_unlike_judgments(own, keys[0])
    cells = group(own, lambda run: run["method"])
    compared = _compared(cells, keys[0], baseline, bound)
    tuning = _trained(read_runs(own[0].folder.parent.parent, TUNING + own[0].experiment))
    header = [
        f"Question: {question}",
        f"Expected, before the runs: {expected}",
        _found(compared, runs, baseline),
    ]
    table = Table(
        "league", f"The league: {keys[0]}", [*LABELS, score_title(keys[0]), *NUMBERS],
        list(_rows(cells, compared, runs, keys[0], baseline)), 2,
        [*header, *_how(method_title(baseline, runs), bound), error_fact(own),
         *one_seed(against.comparison.seeds for against in compared.values()), *_edges(own, tuning),
         _cost(own, tuning), *facts([*own, *broken], keys[0])],
    )  # fmt: skip
    return [table, _picture(cells, [*own, *broken], keys[0], header)]


def _trained(runs: Sequence[RunView]) -> list[RunView]:
    """Return the runs that are ranked or were candidates: no starts, and none of which nothing can be read."""
    return [run for run in runs if run["phase"] != "sft" and run.status != "broken"]


LABELS = ("", "Method", "learning rate")
NUMBERS = ("tokens", "difference", "from", "to", "p", "p of none", "verdict", "log(dw/dl)", "displaced, %")


@dataclass(frozen=True)
class Against:
    """Hold a method's comparison with the baseline, and Holm's p of a difference and of none beyond the bound."""

    comparison: Comparison
    p_value: float
    p_equal: float

    @property
    def verdict(self) -> str:
        difference = self.comparison.difference.value
        if self.comparison.seeds < 2:  # whatever the prompts say, they say it of two models
            return "cannot be said"
        return verdict(difference, self.p_value, self.p_equal < LEVEL, "better", "worse")


def _compared(cells: Mapping[str, Repeats], key: str, baseline: str, bound: float) -> dict[str, Against]:
    pairs = {
        method: found
        for method, repeats in cells.items()
        if method != baseline
        and (found := paired_scores(repeats, cells.get(baseline, Repeats()), key, "score"))
    }
    comparisons = [compare_over_seeds(*pair) for pair in pairs.values()]
    different = holm([comparison.p_value for comparison in comparisons]) if pairs else []
    equal = holm([equivalence(*pair, bound) for pair in pairs.values()]) if pairs else []
    return {
        method: Against(*found) for method, *found in zip(pairs, comparisons, different, equal, strict=True)
    }


def _rows(
    cells: Mapping[str, Repeats],
    compared: Mapping[str, Against],
    runs: Sequence[RunView],
    key: str,
    baseline: str,
) -> list[list[Entry | str]]:
    seeds, rows = seeds_of([run for run in runs if run["phase"] != "sft"]), []
    means = {method: repeats.estimate(read_metric(f"{key}:score_mean")) for method, repeats in cells.items()}
    # A method that failed on a seed stands below: the seeds that are left may be its lucky ones.
    order = sorted(cells, key=lambda m: (-found.seeds, -found.value, m) if (found := means[m]) else (0, 0, m))
    for place, method in enumerate(order, 1):
        entry = partial(_entry, cells[method], seeds)
        rates = sorted({flatten(run["settings"])["optimizer.lr"] for run in cells[method].runs})
        against = compared.get(method)
        alone = Entry(note="no judged seed in common with the baseline") if means[method] else Entry()
        numbers: list[Entry | str] = [Entry()] * 5 + [
            "baseline" if method == baseline and means[method] else alone
        ]
        if against:
            difference = against.comparison.difference
            numbers = [number(v, 3, sign="+") for v in (difference.value, difference.low, difference.high)]
            numbers += [number(against.p_value, 3), number(against.p_equal, 3), against.verdict]
        rows.append([
            str(place), method_title(method, runs), ", ".join(f"{rate:g}" for rate in rates),
            entry(f"{key}:score_mean", 3), entry(f"{key}:tokens_mean", 1), *numbers, entry(LOG_RATIO, 2),
            entry("eval/displaced", 1, 100.0),
        ])  # fmt: skip
    return rows


def _entry(repeats: Repeats, seeds: Sequence[int], metric: str, digits: int, times: float = 1.0) -> Entry:
    read = read_metric(metric)
    scaled = read if times == 1 else lambda run: (None if (v := read(run)[0]) is None else times * v, None)
    return number_entry(repeats, scaled, digits, seeds, metric.partition(":")[0])


def _found(compared: Mapping[str, Against], runs: Sequence[RunView], baseline: str) -> str:
    kinds: dict[str, list[str]] = {}
    for method, against in compared.items():
        kinds.setdefault(against.verdict, []).append(method_title(method, runs))
    said = "; ".join(
        f"{len(names)} {verdict} ({', '.join(names)})" for verdict, names in sorted(kinds.items())
    )
    return f"Found, against {method_title(baseline, runs)}: {said or 'nothing yet'}."


def _how(baseline: str, bound: float) -> list[str]:
    return [
        f"Differences from {baseline}, points, with 95 % intervals, paired over training seeds (t) and "
        "over prompts (bootstrap): the wider counts. p: the larger of both tests; p of none: two one-sided t tests "
        f"within ±{bound:g}; each Holm-corrected over all methods.",
        "log(dw/dl): the loss's pull on the chosen answer over its push on the rejected one, mean over held-out pairs "
        "where both have one sign; displaced: pairs whose chosen answer is less likely than at the start.",
    ]


def _edges(runs: Sequence[RunView], tuning: Sequence[RunView]) -> list[str]:
    """Name the methods whose best rate is an end of what was tried: a better one may lie beyond."""
    tried = {flatten(run["settings"])["optimizer.lr"] for run in tuning}
    ends: dict[float, list[str]] = {}
    for run in runs:
        rate, title = flatten(run["settings"])["optimizer.lr"], method_title(run["method"], runs)
        if tried and rate in (min(tried), max(tried)) and title not in ends.setdefault(rate, []):
            ends[rate].append(title)
    named = "; ".join(f"{rate:g}: {', '.join(sorted(titles))}" for rate, titles in sorted(ends.items()))
    return (
        [f"Best at an end of the rates tried, so that a better one may lie beyond: {named}."] if ends else []
    )


def _cost(runs: Sequence[RunView], trials: Sequence[RunView]) -> str:
    lost = sum(run.status == "failed" for run in trials)
    hours = sum(run["seconds"] or 0 for run in (*runs, *trials)) / 3600
    failed = f", {lost} of them failed and were no candidates" if lost else ""
    return (
        f"Cost: {len(trials)} tuning runs (seeds {', '.join(map(str, seeds_of(trials)))}{failed}), {len(runs)} runs; "
        f"{hours:.1f} hours of training in all, without the starts and the judging."
    )


def _picture(
    cells: Mapping[str, Repeats], runs: Sequence[RunView], key: str, below: Sequence[str]
) -> Picture:
    """Draw a labelled point a method: score over log(dw/dl), with the 95 % t interval over seeds."""
    points, without = [], []
    for method in methods_in_order(runs, load_paper().methods):
        ratio, score = (
            [
                value
                for run in cells.get(method, Repeats()).finished
                if (value := last_metric(run, name)) is not None
            ]
            for name in (LOG_RATIO, f"{key}:score_mean")
        )
        if ratio and score:
            points.append((float(np.mean(ratio)), t_test(np.array(score))[0], method))
        elif score:
            without.append(method_title(method, runs))
    title = "Quality and the balance of pull and push"
    with styled():
        figure = Figure(figsize=(9.5, 6.2), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=QUIET, linewidth=0.8)
        for x, found, method in points:
            colour = method_colour(method, runs)
            axes.plot([x, x], [found.low, found.high], color=colour, linewidth=1.2)
            axes.plot(x, found.value, "o", color=colour, markersize=6)
        axes.set(xlabel="log(dw/dl), mean over held-out pairs (0: DPO)", ylabel="score, mean over prompts")
        labels = [(x, f.value, method_title(m, runs), method_colour(m, runs)) for x, f, m in points]
        low, high = axes.get_xlim()
        crowd = [label for label in labels if abs(label[0]) < CROWDED * (high - low)]
        label_column(axes, crowd, (-low) / (high - low) - 0.05)
        label_points(axes, [(x, y, "" if (x, y, t, c) in crowd else t, c) for x, y, t, c in labels])
        left_out = f"no log(dw/dl): {', '.join(without)}; " if without else ""
        captioned(figure, title, left_out + figure_facts(runs, "95 % t interval over"))
    return Picture(figure, "league-incentives", title, below)


# What a panel shows of a run's training, and where DPO's own value is known.
PANELS = (
    ("incentive/log_ratio", "log(dw/dl): pull over push", 0.0),
    ("displaced", "share of displaced pairs", None),
    ("incentive/chosen", "pull on the chosen answer, dw", None),
    ("incentive/rejected", "push on the rejected answer, dl", None),
)


def incentives(runs: Sequence[RunView]) -> Picture:
    """Draw what each method's loss does to the two answers of a pair over training, a line a method."""
    own = _trained(runs)
    refuse_mixtures(own)
    cells = group(own, lambda run: run["method"])
    shown = [
        (m, method_title(m, own), method_colour(m, own)) for m in methods_in_order(own, load_paper().methods)
    ]
    with styled():
        figure = Figure(figsize=(12, 7.4), layout="constrained")
        for axes, (metric, title, dpos) in zip(
            figure.subplots(2, 2, sharex=True).ravel(), PANELS, strict=True
        ):
            axes.set_title(title)
            if dpos is not None:
                axes.axhline(dpos, color=QUIET, linewidth=0.8)
            found = [(band(cells[m], metric), label, colour) for m, label, colour in shown if m in cells]
            if metric in ("incentive/chosen", "incentive/rejected"):
                axes.set_yscale("log")
            ends = [draw_band(axes, line) for line in found if line[0]]
            label_end(axes, ends, gap=0.06)
            if not ends:
                say(axes, "no such metric")
        captioned(
            figure,
            "What each objective does to the two answers",
            f"over optimizer steps; {figure_facts(runs)}",
        )
    return Picture(figure, "incentives", "What each objective does to the two answers of a pair")
