"""One look for every picture: colour-blind safe, direct labels, legible in print."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from sgdpo.store import write_json

# Okabe and Ito (2008), darkened where the original is too pale for thin lines on white.
CHOSEN, REJECTED, MARGIN, ACCURACY = "#0072B2", "#D55E00", "#009E73", "#8A5A83"
INK, QUIET, GRID = "#22252A", "#6B7078", "#E4E6E9"
# Lines of one kind, told apart by their labels first.
COLOURS = (CHOSEN, REJECTED, MARGIN, ACCURACY, "#B07C00")
STYLE = {
    "font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": QUIET, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": QUIET, "ytick.color": QUIET,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "legend.frameon": False, "svg.fonttype": "none",
    "svg.hashsalt": "sgdpo", "figure.constrained_layout.use": True,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Apply the look, and no other setting of the caller's matplotlib."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        yield


@dataclass(frozen=True)
class Picture:
    """Hold a drawn figure: its file's name, its caption, and whose numbers these are (as a Table does)."""

    figure: Figure
    name: str = ""
    title: str = ""
    facts: Sequence[str] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Write <name>.png to look at, .svg and .pdf to print, .json with what they show; return their paths."""
        paths = [folder / f"{self.name}{form}" for form in (".png", ".svg", ".pdf", ".json")]
        save(self.figure, *paths[:3])
        shown = {"name": self.name, "title": self.title, "facts": self.facts, "origin": self.origin}
        write_json(paths[3], {"picture": paths[1].name, **shown})
        return paths


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure to each path (png, svg, pdf), without a date: the same data give the same file."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        dates = {".svg": "Date", ".pdf": "CreationDate"}
        with styled():
            figure.savefig(path, dpi=160, metadata={dates.get(path.suffix, "Software"): None})


def captioned(figure: Figure, title: str, below: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(below, fontsize=8.5, color=QUIET, x=0.01, ha="left")


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Return the centred moving mean over `window` values, shorter at the ends; NaN is left out."""
    array = np.asarray(values, dtype=float)
    half = window // 2
    padded = np.pad(array, half, constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    count = np.isfinite(views).sum(-1)
    total = np.where(np.isfinite(views), views, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smoothing_window(count: int) -> int:
    return max(1, count // 15) | 1


def label_end(axes: Axes, points: Sequence[tuple[float, str, str]], gap: float = 0.065) -> None:
    """Write labels at the right edge, at the heights where curves end, moved apart where they would touch.

    points: (y, text, colour) of each curve's last point; gap: least distance, as a share of the axis.
    """
    axes.autoscale_view()
    ordered = sorted((point for point in points if np.isfinite(point[0])), key=lambda point: point[0])
    heights = _apart(axes, [y for y, *_ in ordered], gap)
    for (_, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            f" {text}", (1.0, height), xycoords="axes fraction", color=colour, fontsize=9, fontweight="bold",
            va="center", annotation_clip=False,
        )  # fmt: skip


def _apart(axes: Axes, ys: Sequence[float], gap: float) -> np.ndarray:
    """Return heights, shares of the axes, at least `gap` apart, moved as little as that takes. ys: ascending."""
    if not ys:
        return np.empty(0)
    to_axes, left = axes.transData + axes.transAxes.inverted(), axes.get_xlim()[0]
    steps = gap * np.arange(len(ys))
    wanted = to_axes.transform([(left, y) for y in ys])[:, 1]
    return np.maximum(isotonic_regression(wanted - steps).x, 0) + steps


def label_column(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], at: float, gap: float = 0.032
) -> None:
    """Write the labels of a crowd of points under each other, in their order, each with a line to its point.

    points: (x, y, text, colour). at: where the column ends, gap: its least step; shares of the axes.
    """
    axes.autoscale_view()
    ordered = sorted(points, key=lambda point: point[1])
    heights = _apart(axes, [y for _, y, *_ in ordered], gap)
    line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "relpos": (1, 0.5)}
    for (x, y, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text, (x, y), (at, height), textcoords="axes fraction", fontsize=8.5, color=colour, fontweight="bold",
            ha="right", va="center", arrowprops=line,
        )  # fmt: skip


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a label beside each point, where it covers neither another label nor another point.

    points: (x, y, text, colour); without a text a point is only kept free. A label that finds no free place takes the
    farthest and has a line to its point.
    """
    axes.autoscale_view()
    centres = axes.transData.transform([(x, y) for x, y, *_ in points]) if points else np.empty((0, 2))
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for (x, y, text, colour), (at_x, at_y) in zip(points, centres, strict=True):
        if not text:
            continue
        wide, high = 6.2 * len(text) + 2, 11.0
        for reach in (8, 16, 26, 38, 52, 68, 86):
            places = [
                (at_x + reach * np.cos(a) - wide * (np.cos(a) < -0.1), at_y + reach * np.sin(a) - high / 2)
                for a in np.radians((0, 180, 45, -45, 135, -135, 90, -90))
            ]
            boxes = [(left, low, left + wide, low + high) for left, low in places]
            free = next((box for box in boxes if not any(_touch(box, other) for other in taken)), None)
            if free:
                break
        box = free or boxes[0]
        taken.append(box)
        line = {"arrowprops": {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6}} if reach > 8 else {}
        axes.annotate(
            text, (x, y), ((box[0] - at_x) * 72 / axes.figure.dpi, (box[1] - at_y) * 72 / axes.figure.dpi),
            textcoords="offset points", fontsize=8.5, color=colour, fontweight="bold", annotation_clip=False, **line,
        )  # fmt: skip


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
