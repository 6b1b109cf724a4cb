"""One look for every picture: colour-blind safe, direct labels, legible in print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    to_axes = axes.transData + axes.transAxes.inverted()
    height = -np.inf
    for y, text, colour in sorted((point for point in points if np.isfinite(point[0])), key=lambda p: p[0]):
        height = max(to_axes.transform((axes.get_xlim()[1], y))[1], height + gap)
        axes.annotate(
            f" {text}", (1.0, height), xycoords="axes fraction", color=colour, fontsize=9, fontweight="bold",
            va="center", annotation_clip=False,
        )  # fmt: skip
