"""Intervals beside each other: a row a contrast, a panel a condition; or a walk from one end to the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.benchmarks.statistics import Interval
from sgdpo.drawing.style import CHOSEN, GRID, QUIET, Picture, styled

# Panels in one row; more of them stand in rows of three.
MOST_ABREAST = 4


@dataclass(frozen=True)
class Row:
    """Hold an interval, the panel that it stands in, the label that it has there, and what counts as no difference."""

    panel: str
    label: str
    interval: Interval
    bound: float | None


def interval_chart(rows: Sequence[Row], axis: str, walk: bool, along: str = "") -> Picture:
    """Draw the rows; within a row's bound, which is shaded, nothing differs.

    walk: upright, and joined by a line. along: what the labels of a walk are.
    """
    panels = list(dict.fromkeys(row.panel for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    across = len(panels) if walk or len(panels) <= MOST_ABREAST else 3
    down = -(-len(panels) // across)
    size = (5.2 * across, 3.9) if walk else (3.6 * across + 2.4, (0.34 * len(labels) + 1.3) * down + 0.2)
    with styled():
        figure = Figure(figsize=size, layout="constrained")
        axes_P = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
        for axes in axes_P[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(axes_P, panels, strict=False):
            axes.set_title(panel)
            own = {row.label: row for row in rows if row.panel == panel}
            (_upright if walk else _lying)(axes, [own.get(label) for label in labels], labels)
        if walk:
            axes_P[0].set_ylabel(axis, fontsize=10)
        figure.supxlabel(along if walk else axis, fontsize=10)
    return Picture(figure, "-intervals")


def _lying(axes: Axes, rows: Sequence[Row | None], labels: Sequence[str]) -> None:
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.use_sticky_edges = False  # the shade of a bound ends inside the panel
    for at, row in enumerate(rows):
        if row is None:
            continue
        found = row.interval
        if row.bound is not None:
            axes.barh(at, 2 * row.bound, height=1, left=-row.bound, color=GRID, zorder=0)
        axes.plot([found.low, found.high], [at, at], color=CHOSEN, linewidth=2, solid_capstyle="butt")
        axes.plot(found.value, at, "o", color=CHOSEN, markersize=5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # a panel is 3.6 inches wide: more labels would touch
    axes.grid(axis="y", visible=False)


def _upright(axes: Axes, rows: Sequence[Row | None], labels: Sequence[str]) -> None:
    shown = [(at, row.interval) for at, row in enumerate(rows) if row]
    axes.axhline(0, color=QUIET, linewidth=1)
    for bound in {row.bound for row in rows if row and row.bound}:
        axes.axhspan(-bound, bound, color=GRID, zorder=0)
    places, values = [at for at, _ in shown], [found.value for _, found in shown]
    axes.plot(places, values, "o-", color=CHOSEN, linewidth=1.6, markersize=5)
    axes.vlines(places, [f.low for _, f in shown], [f.high for _, f in shown], color=CHOSEN, linewidth=2)
    axes.set_xticks(range(len(labels)), [label.replace(" (", "\n(") for label in labels])
    axes.grid(axis="x", visible=False)
