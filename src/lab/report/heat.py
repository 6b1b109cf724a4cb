"""The ratio grid as a heat map, DPO marked on its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lab.report.cells import group, ratio_of, read_metric, refuse_mixtures
from lab.report.common import by_model, figure_name, save_figure
from lab.report.figures import Ratio
from lab.report.paper import Paper
from sgdpo.drawing.style import METRIC_TITLES, styled
from sgdpo.runs.records import RunView


def ratio_heat_maps(runs: Sequence[RunView], metric: str, paper: Paper, folder: Path) -> list[Path]:
    """Draw the grid of a metric for every model, with DPO's value on the colour scale."""
    refuse_mixtures(runs)
    paths = []
    for model, own in by_model(runs):
        grid = group([run for run in own if ratio_of(run)], ratio_of)
        means = {ratio: cell.estimate(read_metric(metric)) for ratio, cell in grid.items()}
        values = {ratio: estimate.value for ratio, estimate in means.items() if estimate}
        dpo = group([run for run in own if run["method"] == "dpo"], lambda run: "dpo").get("dpo")
        beside = dpo.estimate(read_metric(metric)) if dpo else None
        if values:
            name = figure_name("ratio_grid", runs, model)
            title = f"{METRIC_TITLES.get(metric, metric)}, {paper.title(model)}"
            paths += heat_map(values, beside.value if beside else None, title, folder, name)
    if not paths:
        raise ValueError(f"no finished run with ratios has the metric {metric!r}")
    return paths


def heat_map(
    values: Mapping[Ratio, float], dpo: float | None, title: str, folder: Path, name: str
) -> list[Path]:
    """Draw values over (chosen, rejected) ratios; DPO's value is a line on the scale; write png and svg."""
    chosen, rejected = (sorted({ratio[k] for ratio in values}) for k in (0, 1))
    value_CR = np.array([[values.get((c, r), np.nan) for r in rejected] for c in chosen])
    shown = [v for v in [*values.values(), dpo] if v is not None]
    with styled():
        figure = Figure(figsize=(1.15 * len(rejected) + 2.6, 0.95 * len(chosen) + 1.6), layout="constrained")
        axes = figure.subplots()
        axes.grid(False)
        image = axes.imshow(
            value_CR, cmap="cividis", vmin=min(shown), vmax=max(shown), origin="lower", aspect="auto"
        )
        middle = (min(shown) + max(shown)) / 2
        for (c, r), value in np.ndenumerate(value_CR):
            label = "–" if np.isnan(value) else _digits(value)
            axes.text(r, c, label, ha="center", va="center", color="white" if value < middle else "black")
        axes.set_xticks(range(len(rejected)), [f"{r:g}" for r in rejected])
        axes.set_yticks(range(len(chosen)), [f"{c:g}" for c in chosen])
        axes.set_xlabel("ratio.rejected (r2)")
        axes.set_ylabel("ratio.chosen (r1)")
        axes.set_title(title)
        scale = figure.colorbar(image, ax=axes)
        if dpo is not None:
            scale.ax.axhline(dpo, color="#D55E00", linewidth=3)
            scale.ax.annotate(
                f"DPO {_digits(dpo)}",
                (0, dpo),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 0),
                color="#B34700",
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9,
                fontweight="bold",
                annotation_clip=False,
            )
        return save_figure(figure, folder, name)


def _digits(value: float) -> str:
    """Return three significant digits, zeros included: all cells of a map are as exact."""
    return f"{value:#.3g}".rstrip(".")
