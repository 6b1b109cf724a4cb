"""Two figures that the paper does not have: the gradient balance, and quality against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lab.report.cells import Cell, group, last_metric, learning_rate, ratio_of, read_metric, refuse_mixtures
from lab.report.common import by_model, figure_facts, figure_name, save_figure
from lab.report.figures import Ratio, six_ratios
from lab.report.panels import band
from lab.report.paper import Paper
from sgdpo.drawing.style import METHOD_COLOURS, METHOD_TITLES, METRIC_TITLES, QUIET, label_end, styled
from sgdpo.runs.records import RunView, view_run


def balance_figure(runs: Sequence[RunView], paper: Paper, folder: Path) -> list[Path]:
    """Draw log f of Theorem 3 over training, a line a ratio: 0 is DPO's balance of the two gradients."""
    refuse_mixtures(runs)
    paths = []
    for model, own in by_model(runs):
        grid = group([run for run in own if ratio_of(run)], ratio_of)
        bands = [(ratio, band(grid[ratio], "pilot/log_balance")) for ratio in six_ratios(list(grid))]
        drawn = [(ratio, found) for ratio, found in bands if found is not None]
        if drawn:
            name = figure_name("balance", runs, model)
            paths += _draw_balance(
                drawn, f"Gradient balance (Theorem 3), {paper.title(model)}", figure_facts(own), folder, name
            )
    if not paths:
        raise ValueError("no finished run has pilot/log_balance: it is logged by method=sgdpo")
    return paths


def _draw_balance(
    drawn: Sequence[tuple[Ratio, Any]], title: str, facts: str, folder: Path, name: str
) -> list[Path]:
    colours = ["#0072B2", "#D55E00", "#009E73", "#8A5A83", "#B07C00"]
    with styled():
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=QUIET, linewidth=1.2, linestyle="--")
        ends = [(0.0, "DPO (f = 1)", QUIET)]
        for (ratio, found), colour in zip(drawn, colours, strict=False):
            axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(found.steps, found.mean, color=colour, linewidth=2)
            ends.append((found.mean[-1], f"r1 {ratio[0]:g}, r2 {ratio[1]:g}", colour))
        axes.set_title(title)
        axes.set_ylabel("log f, mean over pairs")
        axes.set_xlabel(f"optimizer step\n{facts}")
        label_end(axes, ends)
        return save_figure(figure, folder, name)


def learning_rate_figure(runs: Sequence[RunView], metric: str, paper: Paper, folder: Path) -> list[Path]:
    """Draw a metric against the learning rate for DPO and SGDPO, the range over seeds as a band."""
    refuse_mixtures(runs)
    paths = []
    for model, own in by_model(runs):
        cells = group(own, lambda run: (run["method"], learning_rate(run)))
        curves = {method: _over_rates(cells, method, metric) for method in ("dpo", "sgdpo")}
        if any(len(rates) for rates, *_ in curves.values()):
            start = start_mean(own, metric)
            title = f"Quality against the learning rate, {paper.title(model)}"
            name = figure_name("learning_rate", runs, model)
            paths += _draw_rates(curves, start, metric, title, figure_facts(own), folder, name)
    if not paths:
        raise ValueError(f"no finished DPO or SGDPO run has the metric {metric!r}")
    return paths


def _over_rates(cells: Mapping[tuple[str, float], Cell], method: str, metric: str) -> tuple[np.ndarray, ...]:
    read, rows = read_metric(metric), []
    for (name, rate), cell in sorted(cells.items(), key=lambda item: (item[0][0], item[0][1] or 0.0)):
        values = (
            [value for value, _ in map(read, cell.finished) if value is not None] if name == method else []
        )
        if values:
            rows.append((rate, np.mean(values), min(values), max(values)))
    return tuple(np.array(rows, dtype=float).reshape(-1, 4).T)


def start_mean(runs: Sequence[RunView], metric: str) -> float | None:
    """Return the mean of a metric over the SFT starts of the runs, wherever they lie; None if none has it."""
    folders = {run.folder for run in runs if run["method"] == "sft"}
    for start in {run["start"] for run in runs if run["start"]}:
        folders |= {path.parent for path in runs[0].folder.parent.parent.glob(f"*/{start}/record.json")}
    values = [value for run in map(view_run, folders) if (value := last_metric(run, metric)) is not None]
    return float(np.mean(values)) if values else None


def _draw_rates(
    curves: Mapping[str, tuple[np.ndarray, ...]],
    start: float | None,
    metric: str,
    title: str,
    facts: str,
    folder: Path,
    name: str,
) -> list[Path]:
    with styled():
        figure = Figure(figsize=(7.5, 4.6), layout="constrained")
        axes = figure.subplots()
        ends = []
        for method, (rate, mean, low, high) in curves.items():
            if len(rate):
                colour = METHOD_COLOURS[method]
                axes.fill_between(rate, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(rate, mean, "o-", color=colour, linewidth=2, markersize=5)
                ends.append((mean[-1], METHOD_TITLES[method], colour))
        axes.set_xscale("log")
        rates = sorted({float(r) for rate, *_ in curves.values() for r in rate})
        axes.set_xticks(rates, [f"{r:g}" for r in rates])
        axes.xaxis.set_minor_formatter(NullFormatter())
        if start is not None:
            axes.axhline(start, color=QUIET, linewidth=1.2, linestyle="--")
            ends.append((start, "SFT start", QUIET))
        axes.set_title(title)
        axes.set_xlabel(f"peak learning rate\n{facts}")
        axes.set_ylabel(METRIC_TITLES.get(metric, metric))
        label_end(axes, ends)
        return save_figure(figure, folder, name)
