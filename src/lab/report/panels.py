"""What figures are drawn of: a metric over seeds as a band, panels of rewards, labelled lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.cells import Repeats
from sgdpo.drawing.curves import series
from sgdpo.drawing.style import CHOSEN, QUIET, REJECTED, label_end, smooth, smoothing_window

SIDES = (("rewards/chosen", "chosen", CHOSEN), ("rewards/rejected", "rejected", REJECTED))


@dataclass(frozen=True)
class Band:
    """Hold a metric over seeds: mean, lowest and highest value at each step (or learning rate)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(repeats: Repeats, key: str) -> Band | None:
    """Give the band of a smoothed training metric over finished runs, at the steps they share; None without."""
    curves = []
    for run in repeats.finished:
        steps, values = series(run.metrics(), "train", key)
        if len(steps):
            curves.append(dict(zip(steps, smooth(values, smoothing_window(len(values))), strict=True)))
    if not curves:
        return None
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    value_SR = np.array([[curve[step] for step in steps] for curve in curves])
    return Band(np.array(steps), value_SR.mean(0), value_SR.min(0), value_SR.max(0))


def reward_panels(panels: Sequence[tuple[str, Repeats | None]], title: str, facts: str) -> Figure:
    """Draw chosen and rejected training rewards, a panel each in rows of two or three; a missing one says why."""
    wide = 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // wide)
    figure = Figure(figsize=(3.6 * wide + 0.7, 3.1 * rows + 0.9), layout="constrained")
    axes_P = figure.subplots(rows, wide, sharex=True, sharey=True, squeeze=False).ravel()
    ends = [_rewards(axes, name, repeats) for axes, (name, repeats) in zip(axes_P, panels, strict=False)]
    for axes in axes_P[len(panels) :]:
        axes.set_axis_off()
    for axes in axes_P[max(0, len(panels) - wide) : len(panels)]:
        axes.tick_params(labelbottom=True)  # the last of its column, with or without a full last row
    for axes, points in zip(axes_P, ends, strict=False):
        label_end(axes, points, gap=0.09)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    figure.supylabel("implicit reward β · log(π / π_ref), nats", fontsize=10)
    figure.supxlabel(f"optimizer step\n{facts}", fontsize=9, color=QUIET)
    return figure


def _rewards(axes: Axes, name: str, repeats: Repeats | None) -> list[tuple[float, str, str]]:
    axes.set_title(name)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    found = [(band(repeats, key), label, colour) for key, label, colour in SIDES] if repeats else []
    ends = [draw_band(axes, line) for line in found if line[0]]
    if not ends:
        say(axes, why_empty(repeats))
    return ends


def draw_band(axes: Axes, line: tuple[Band, str, str], form: str = "-") -> tuple[float, str, str]:
    """Draw a curve with its range over seeds; return where it ends, its label and its colour."""
    found, label, colour = line
    axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(found.steps, found.mean, form, color=colour, linewidth=2, markersize=5)
    return found.mean[-1], label, colour


def why_empty(repeats: Repeats | None) -> str:
    if repeats is None or not repeats.runs:
        return "not run"
    return "no such metric" if repeats.finished else ", ".join(sorted({run.status for run in repeats.runs}))


def line_chart(
    lines: Sequence[tuple[Band, str, str]],
    reference: tuple[str, float] | None,
    title: str,
    axis: tuple[str, str],
    facts: str,
    form: str = "-",
) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    ends = [draw_band(axes, line, form) for line in lines]
    if reference:
        axes.axhline(reference[1], color=QUIET, linewidth=1.2, linestyle="--")
        ends.append((reference[1], reference[0], QUIET))
    axes.set_title(title)
    axes.set_xlabel(f"{axis[0]}\n{facts}")
    axes.set_ylabel(axis[1])
    label_end(axes, ends)
    return figure


def say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)
