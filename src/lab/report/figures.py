"""The figures: the paper's 1 to 3, the ratio grid, the gradient balance, quality against the learning rate.

Each is a function of the runs alone that draws one picture a model; a curve that is missing says why.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lab.report.cells import (
    Estimate,
    Ratio,
    Repeats,
    by_model,
    comparable,
    default_metric,
    group,
    last_metric,
    learning_rate,
    ratio_of,
    read_metric,
    refuse_unlike_judgments,
)
from lab.report.claim import check_claim, claim_table
from lab.report.entries import commit_text, figure_facts, ratio_text
from lab.report.names import load_paper, method_colour, method_title, methods_in_order, metric_title
from lab.report.panels import Band, band, line_chart, reward_panels, say
from sgdpo.drawing.style import CHOSEN, COLOURS, REJECTED, Picture, captioned, styled
from sgdpo.drawing.table import Table
from sgdpo.runs.records import RunView, view_run
from sgdpo.store import read_json

DIAGONAL = ((0.6, 0.6), (0.7, 0.7), (0.8, 0.8), (0.9, 0.9), (1.0, 1.0))


def figure1(runs: Sequence[RunView], *, data: str, benchmarks: dict[str, float]) -> Picture:
    """Draw how far a judge's second opinion of the same answers is from its first, a panel a benchmark.

    data: what scripts/judge_variance.py wrote, {"<benchmark>-<judge>": {"differences", "correlation", "flips"}}.
    benchmarks: those that the figure needs, with the highest less the lowest score that their judge gives.
    """
    make = "python scripts/judge_variance.py"
    if not Path(data).is_file():
        raise ValueError(f"no judge variance at {data}. Make it: {make}")
    measured = read_json(Path(data), advice=f"make it again: {make}")
    judged = {key: values for key, values in measured.items() if isinstance(values, dict)}
    if not any(values.get("differences") for values in judged.values()):
        raise ValueError(f"{data} holds no differences of any benchmark. Make it again: {make}")
    missing = [name for name in benchmarks if not any(key.startswith(f"{name}-") for key in judged)]
    panels = [*judged.items(), *((name, {}) for name in missing)]
    with styled():
        figure = Figure(figsize=(5.2 * len(panels), 4.1), layout="constrained")
        axes_B = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (key, values) in zip(axes_B, panels, strict=True):
            axes.set_title(key)
            axes.set_xlabel("second judgment less first, % of the scale")
            if values.get("differences"):
                _spread(axes, values, values.get("scale") or benchmarks.get(key.split("-")[0], 1.0))
            else:
                say(axes, f"not judged twice yet:\n{make} RUN\n--benchmarks {key} judge=...")
        axes_B[0].set_ylabel("share of judgments, %")
        title = "Figure 1: the judge asked twice about identical answers"
        facts = [f"{key}: {_judged(values)}" for key, values in judged.items()]
        captioned(figure, title, "\n".join(facts))
    commits = sorted({commit_text(run) for values in judged.values() for run in values.get("runs") or []})
    return Picture(figure, "figure1", title, facts, {"commits": commits} if commits else {})


def _spread(axes: Axes, values: Mapping[str, Any], scale: float) -> None:
    percent = 100 * np.asarray(values["differences"], dtype=float) / scale
    weights = np.full(len(percent), 100 / len(percent))
    axes.hist(percent, np.linspace(-100, 100, 42), weights=weights, color=CHOSEN)
    lines = [f"n = {len(percent)}", f"standard deviation {percent.std():.1f} %"]
    lines.append(f"same answer {100 * np.mean(percent == 0):.0f} %")
    lines += [f"correlation {values['correlation']:.2f}"] if values.get("correlation") is not None else []
    lines += [f"flipped {100 * values['flips']:.0f} %"] if values.get("flips") is not None else []
    lines += [] if np.any(percent) else ["this judge cannot vary:", "give it a temperature"]
    axes.text(0.98, 0.97, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", fontsize=9)


def _judged(values: Mapping[str, Any]) -> str:
    """Say who judged whose answers, as scripts/judge_variance.py wrote it down; a checker is named alone."""
    how = values["judged_by"] if isinstance(values.get("judged_by"), dict) else {}
    named = {"judge": values.get("judge"), "temperature": how.get("temperature")}
    parts = [f"{key} {value}" for key, value in named.items() if value is not None]
    for run in values.get("runs") or []:
        parts.append(f"{run['experiment']}/{run['run']}, seed {run['seed']}, commit {commit_text(run)}")
    return ", ".join([*parts, f"{len(values.get('differences') or [])} pairs of judgments"])


def figure2(runs: Sequence[RunView], *, methods: tuple[str, ...] = ()) -> list[Picture]:
    """Figure 2: the training rewards of the methods, the paper's first. methods: these instead."""
    return _rewards("figure2", runs, methods, "Figure 2: training rewards")


def reward_curves(runs: Sequence[RunView], *, methods: tuple[str, ...], title: str) -> list[Picture]:
    """Draw the training rewards of these methods. title: how it begins."""
    return _rewards("", runs, methods, title)


def _rewards(name: str, runs: Sequence[RunView], methods: Sequence[str], title: str) -> list[Picture]:
    def draw(own: list[RunView], model: str) -> tuple[str, Figure]:
        cells = group(own, lambda run: run["method"])
        shown = methods or methods_in_order(own, load_paper().figure2)
        panels = [(method_title(method, own), cells.get(method)) for method in shown]
        whole = f"{title} of {len(panels)} methods, {model}"
        return whole, reward_panels(panels, whole, figure_facts(own))

    return _each_model(name, runs, draw)


def figure3(runs: Sequence[RunView], *, baseline: str = "dpo") -> list[Picture | Table]:
    """Figure 3: training rewards over ratios with the baseline, and the check of the paper's claim about them."""

    def draw(own: list[RunView], model: str) -> tuple[str, Figure]:
        grid, beside = _grid(own, baseline)
        panels = [(_named(ratio, own), grid[ratio]) for ratio in six_ratios(list(grid))]
        panels.append((method_title(baseline, own), beside))
        title = f"Figure 3: training rewards over ratios, {model}"
        return title, reward_panels(panels, title, figure_facts(own))

    return [*_each_model("figure3", runs, draw), claim_table(check_claim(runs))]


def ratio_grid(runs: Sequence[RunView], *, metric: str | None = None, baseline: str = "dpo") -> list[Picture]:
    """Draw the grid of a metric for every model as a heat map, the baseline's value on the colour scale."""
    metric = metric or default_metric(runs)
    refuse_unlike_judgments(runs, metric)

    def draw(own: list[RunView], model: str) -> tuple[str, Figure] | None:
        grid, beside = _grid(own, baseline)
        cells, lacking = comparable(grid, metric)
        base = beside.estimate(read_metric(metric)) if beside else None
        title = f"{metric_title(metric)}, {model}"
        facts = figure_facts(own, "mean ± standard error over")
        left_out = "; ".join(f"{ratio_text(ratio)} ({count})" for ratio, count in sorted(lacking.items()))
        facts += fill(f"left out, not on every seed: {left_out}", 90, initial_indent="\n") if left_out else ""
        return (title, heat_map(cells, base, method_title(baseline, own), title, facts)) if cells else None

    return _each_model("ratio_grid", runs, draw, f"no ratio has on every seed the metric {metric!r}")


def heat_map(
    cells: Mapping[Ratio, Estimate], base: Estimate | None, name: str, title: str, facts: str
) -> Figure:
    """Draw estimates over (chosen, rejected) ratios; `base` is a line on the scale, called `name`."""
    chosen, rejected = (sorted({ratio[k] for ratio in cells}) for k in (0, 1))
    values = [[cells[c, r].value if (c, r) in cells else np.nan for r in rejected] for c in chosen]
    value_CR = np.array(values)
    shown = [estimate.value for estimate in (*cells.values(), base) if estimate]
    write = _writer(cells.values())
    size = (max(6.4, 1.15 * len(rejected) + 2.6), 0.9 * len(chosen) + 2.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    ends = {"vmin": min(shown), "vmax": max(shown)}
    image = axes.imshow(value_CR, cmap="cividis", **ends, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(value_CR):
        estimate = cells.get((chosen[row], rejected[column]))
        colour = "white" if value < (min(shown) + max(shown)) / 2 else "black"
        text = "–" if estimate is None else write(estimate)
        axes.text(column, row, text, ha="center", va="center", color=colour, linespacing=1.3)
    axes.set_xticks(range(len(rejected)), _ticks(rejected))
    axes.set_yticks(range(len(chosen)), _ticks(chosen))
    axes.set(xlabel="ratio.rejected (r2)", ylabel="ratio.chosen (r1)")
    captioned(figure, title, facts)
    scale = figure.colorbar(image, ax=axes, pad=0.03)
    if base is not None:
        scale.ax.axhline(base.value, color=REJECTED, linewidth=3)
        scale.ax.annotate(
            f"{name} {digits(base.value)}", (0, base.value), xycoords=("axes fraction", "data"), xytext=(-4, 0),
            textcoords="offset points", ha="right", va="center", fontsize=9, fontweight="bold", color="#B34700",
            annotation_clip=False,
        )  # fmt: skip
    return figure


def _writer(cells: Iterable[Estimate]) -> Callable[[Estimate], str]:
    """Return what writes a cell: all with as many decimals as show two digits of the middle error, if there are any."""
    errors = [cell.error for cell in cells if cell.error]
    if not errors:
        return lambda cell: digits(cell.value)
    places = max(0, 1 - math.floor(math.log10(np.median(errors))))
    return lambda cell: (
        f"{cell.value:.{places}f}" + ("" if cell.error is None else f"\n± {cell.error:.{places}f}")
    )


def _ticks(ratios: Sequence[float]) -> list[str]:
    """Write all ratios of an axis with as many decimals as the one that needs most: 0.9, 1.0."""
    places = max(1, *(len(f"{ratio:g}".partition(".")[2]) for ratio in ratios))
    return [f"{ratio:.{places}f}" for ratio in ratios]


def digits(value: float) -> str:
    """Write three significant digits, zeros included: all cells of a map are as exact."""
    return f"{value:#.3g}".rstrip(".")


def balance(runs: Sequence[RunView]) -> list[Picture]:
    """Draw log f of Theorem 3 over training, a line a ratio: 0 is DPO's balance of the two gradients."""

    def draw(own: list[RunView], model: str) -> tuple[str, Figure] | None:
        grid, _ = _grid(own, "")
        bands = {ratio: band(grid[ratio], "pilot/log_balance") for ratio in six_ratios(list(grid))}
        lines = [
            (found, _named(ratio), colour)
            for (ratio, found), colour in zip(bands.items(), COLOURS, strict=False)
            if found
        ]
        if not lines:
            return None
        title = f"Gradient balance (Theorem 3), {model}"
        axis = ("optimizer step", "log f, mean over pairs")
        return title, line_chart(lines, ("DPO (f = 1)", 0.0), title, axis, figure_facts(own))

    nothing = "no finished run has pilot/log_balance: methods with pilots log it, as method=sgdpo"
    return _each_model("balance", runs, draw, nothing)


def learning_rates(
    runs: Sequence[RunView], *, methods: tuple[str, ...], metric: str | None = None, field: str | None = None
) -> list[Picture]:
    """Draw a metric against the learning rate, a line a method, the range over seeds as a band.

    field: which number of the evaluation is shown where no metric is named.
    """
    metric = metric or default_metric(runs, field)
    refuse_unlike_judgments(runs, metric)

    def draw(own: list[RunView], model: str) -> tuple[str, Figure] | None:
        shown = methods_in_order([run for run in own if run["method"] in methods], methods)
        bands = [(_over_rates(own, method, metric), method) for method in shown]
        lines = [(b, method_title(m, own), method_colour(m, own)) for b, m in bands if len(b.steps)]
        title, start = f"Quality against the learning rate, {model}", start_mean(own, metric)
        if not lines:
            return None
        reference = None if start is None else ("SFT start", start)
        axis = ("peak learning rate", metric_title(metric))
        figure = line_chart(lines, reference, title, axis, figure_facts(own), "o-")
        axes, rates = figure.axes[0], sorted({float(rate) for b, *_ in lines for rate in b.steps})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.set_minor_formatter(NullFormatter())
        return title, figure

    named = " or ".join(method_title(method) for method in methods)
    return _each_model("learning_rate", runs, draw, f"no finished {named} run has the metric {metric!r}")


def _over_rates(runs: Sequence[RunView], method: str, metric: str) -> Band:
    cells = group([run for run in runs if run["method"] == method and learning_rate(run)], learning_rate)
    rows = []
    for rate, repeats in sorted(cells.items()):
        values = [value for run in repeats.finished if (value := last_metric(run, metric)) is not None]
        rows += [(rate, np.mean(values), min(values), max(values))] if values else []
    return Band(*np.array(rows, dtype=float).reshape(-1, 4).T)


def start_mean(runs: Sequence[RunView], metric: str) -> float | None:
    """Average a metric over the SFT starts of the runs, wherever they lie; None if none has it."""
    folders = {run.folder for run in runs if run["phase"] == "sft"}
    for start in {run["start"] for run in runs if run["start"]}:
        folders |= {path.parent for path in runs[0].folder.parent.parent.glob(f"*/{start}/record.json")}
    values = [value for run in map(view_run, folders) if (value := last_metric(run, metric)) is not None]
    return float(np.mean(values)) if values else None


def six_ratios(ratios: Sequence[Ratio]) -> list[Ratio]:
    """Choose the five ratios to show: all if there are no more, else the diagonal, else evenly spread."""
    ordered = sorted(ratios, key=lambda ratio: (sum(ratio), ratio))
    if len(ordered) <= 5:
        return ordered
    if set(DIAGONAL) <= set(ordered):
        return list(DIAGONAL)
    return [ordered[round(i * (len(ordered) - 1) / 4)] for i in range(5)]


def _named(ratio: Ratio, runs: Sequence[RunView] = ()) -> str:
    r1, r2 = _ticks(ratio)
    methods = sorted({method_title(run["method"], runs) for run in runs if ratio_of(run) == ratio})
    return f"{'/'.join(methods)}, r1 {r1}, r2 {r2}".removeprefix(", ")


def _grid(runs: Sequence[RunView], baseline: str) -> tuple[dict[Ratio, Repeats], Repeats | None]:
    beside = group([run for run in runs if run["method"] == baseline], lambda run: baseline)
    return group([run for run in runs if ratio_of(run)], ratio_of), beside.get(baseline)


def _each_model(
    name: str, runs: Sequence[RunView], draw: Callable[[list[RunView], str], tuple[str, Figure] | None],
    nothing: str = "no run can be drawn",
) -> list[Picture]:  # fmt: skip
    """Draw a picture of each model's runs; the first model's has the plain name. Raise ValueError without any."""
    pictures = []
    for index, (model, own) in enumerate(by_model(runs)):
        with styled():
            drawn = draw(own, load_paper().title(model))
        if drawn:
            stem = name if index == 0 else f"{name}-{model}"
            pictures.append(Picture(drawn[1], stem, drawn[0], [figure_facts(own)]))
    if not pictures:
        raise ValueError(nothing)
    return pictures
