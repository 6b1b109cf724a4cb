"""Draw one run: chosen and rejected training reward, margin and accuracy, against steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sgdpo.drawing.style import (
    ACCURACY,
    CHOSEN,
    INK,
    MARGIN,
    QUIET,
    REJECTED,
    captioned,
    label_end,
    save,
    smooth,
    smoothing_window,
    styled,
)

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """Hold one panel: its title, its unit, and the curves (metric, label, colour) in it."""

    title: str
    unit: str
    curves: tuple[tuple[str, str, str], ...]
    zero: float | None = None


REWARDS = Panel(
    "Implicit rewards",
    "β · log(π / π_ref), nats",
    (("rewards/chosen", "chosen", CHOSEN), ("rewards/rejected", "rejected", REJECTED)),
    zero=0.0,
)
MARGINS = Panel("Margin", "nats", (("rewards/margins", "margin", MARGIN),), zero=0.0)
ACCURACIES = Panel("Accuracy", "share of pairs", (("rewards/accuracies", "accuracy", ACCURACY),), zero=0.5)
LEGEND = "thin: each step   thick: moving mean   ring: held-out {}"
LOSS = Panel("Loss", "nats a token", (("loss", "loss", INK),))


def draw_reward_curves(metrics: Rows, path: Path, title: str) -> None:
    """Write the run's curves to `path`: raw thin, smoothed thick, held-out values as rings.

    A run without rewards (SFT) shows its loss alone.
    """
    has_rewards = any(row.get("rewards/chosen") is not None for row in metrics)
    panels = [REWARDS, MARGINS, ACCURACIES] if has_rewards else [LOSS]
    widths = [2.0, 1.0, 1.0] if has_rewards else [1.0]
    with styled():
        figure = Figure(figsize=(12.0 if has_rewards else 7.0, 4.2), layout="constrained")
        axes_P = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
        for axes, panel in zip(axes_P, panels, strict=True):
            label_end(axes, _draw_panel(axes, panel, metrics))
        captioned(figure, title, LEGEND.format("pairs" if has_rewards else "demonstrations"))
        save(figure, path)


def method_curves(metrics: Mapping[str, Rows]) -> Figure:
    """Draw the rewards of several runs side by side with the same axes; keys are the panels' titles."""
    with styled():
        figure = Figure(figsize=(5.4 * len(metrics) + 0.6, 4.2), layout="constrained")
        axes_M = figure.subplots(1, len(metrics), sharex=True, sharey=True, squeeze=False)[0]
        drawn = zip(axes_M, metrics.items(), strict=True)
        ends_M = [_draw_panel(axes, replace(REWARDS, title=label), rows) for axes, (label, rows) in drawn]
        for axes, ends in zip(axes_M, ends_M, strict=True):
            label_end(axes, ends)  # only now is the shared axis as long as it will be
            axes.label_outer()
        figure.supxlabel(LEGEND.format("pairs"), fontsize=8.5, color=QUIET, x=0.01, ha="left")
    return figure


def _draw_panel(axes: Axes, panel: Panel, metrics: Rows) -> list[tuple[float, str, str]]:
    """Draw a panel; return where its curves end, to be labelled."""
    if panel.zero is not None:
        axes.axhline(panel.zero, color=QUIET, linewidth=0.8)
    ends = []
    for key, label, colour in panel.curves:
        steps, values = series(metrics, "train", key)
        if len(steps):
            smoothed = smooth(values, smoothing_window(len(values)))
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(steps, smoothed, color=colour, linewidth=2.2)
            ends.append((smoothed[-1], label, colour))
        held_out = series(metrics, "eval", key)
        axes.plot(*held_out, "o", markersize=5, markerfacecolor="white", color=colour, markeredgewidth=1.5)
    axes.set(title=panel.title, xlabel="optimizer step", ylabel=panel.unit)
    axes.margins(x=0.02)
    return ends if len(panel.curves) > 1 else []


def series(metrics: Rows, split: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of a metric in one split; rows without it are left out, null is NaN."""
    found = [(row["step"], row[key]) for row in metrics if row["split"] == split and key in row]
    steps = np.array([step for step, _ in found], dtype=float)
    values = np.array([np.nan if value is None else value for _, value in found], dtype=float)
    return steps, values
