"""Reward curves over seeds in panels with the same axes: figures 2 and 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.cells import Cell
from sgdpo.drawing.curves import series
from sgdpo.drawing.style import CHOSEN, QUIET, REJECTED, label_end, save, smooth, smoothing_window, styled

SIDES = (("rewards/chosen", "chosen", CHOSEN), ("rewards/rejected", "rejected", REJECTED))


@dataclass(frozen=True)
class Band:
    """Hold a metric over seeds: mean, lowest and highest smoothed value at each step."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def band(cell: Cell, key: str, split: str = "train") -> Band | None:
    """Return the band of a metric over a cell's finished runs, at the steps they share; None without."""
    curves = []
    for run in cell.finished:
        steps, values = series(run.metrics(), split, key)
        if len(steps):
            curves.append(dict(zip(steps, smooth(values, smoothing_window(len(values))), strict=True)))
    if not curves:
        return None
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    value_SR = np.array([[curve[step] for step in steps] for curve in curves])
    return Band(np.array(steps), value_SR.mean(0), value_SR.min(0), value_SR.max(0), len(curves))


def reward_panels(panels: Sequence[tuple[str, Cell | None]], title: str, facts: str, *paths: Path) -> None:
    """Draw chosen and rejected training rewards, a panel each in rows of three; a missing one says why."""
    rows = -(-len(panels) // 3)
    with styled():
        figure = Figure(figsize=(11.5, 3.1 * rows + 0.9), layout="constrained")
        axes_P = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False).ravel()
        ends = [_draw(axes, name, cell) for axes, (name, cell) in zip(axes_P, panels, strict=False)]
        for axes in axes_P[len(panels) :]:
            axes.set_axis_off()
        for axes, points in zip(axes_P, ends, strict=False):
            label_end(axes, points, gap=0.09)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        figure.supylabel("implicit reward β · log(π / π_ref), nats", fontsize=10)
        figure.supxlabel(f"optimizer step\n{facts}", fontsize=9, color=QUIET)
        save(figure, *paths)


def _draw(axes: Axes, name: str, cell: Cell | None) -> list[tuple[float, str, str]]:
    axes.set_title(name)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    ends = []
    for key, label, colour in SIDES:
        found = band(cell, key) if cell else None
        if found is not None:
            axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(found.steps, found.mean, color=colour, linewidth=2)
            ends.append((found.mean[-1], label, colour))
    if not ends:
        reason = why_empty(cell)
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=QUIET)
    return ends


def why_empty(cell: Cell | None) -> str:
    """Return why a panel has no curve: not run, failed, running or without this metric."""
    if cell is None or not cell.runs:
        return "not run"
    if cell.finished:
        return "no such metric"
    return ", ".join(sorted({run.status for run in cell.runs}))
