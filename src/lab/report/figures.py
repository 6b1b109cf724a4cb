"""The paper's figures 1 to 3, from records alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lab.report.cells import group, ratio_of, refuse_mixtures
from lab.report.common import by_model, figure_facts, figure_name, figure_paths, save_figure
from lab.report.panels import reward_panels
from lab.report.paper import Paper
from sgdpo.drawing.style import METHOD_TITLES, styled
from sgdpo.runs.records import RunView

FIGURE2 = ("dpo", "sgdpo", "nca", "bco", "ipo", "sampo")
DIAGONAL = ((0.6, 0.6), (0.7, 0.7), (0.8, 0.8), (0.9, 0.9), (1.0, 1.0))
SCALES = {"mt_bench": 9.0, "alpaca_eval": 1.0, "verifiable": 10.0}  # highest less lowest score
Ratio = tuple[float, float]


def figure1(data: Path, folder: Path) -> list[Path]:
    """Draw how far a judge's second opinion of the same answers is from its first, a panel a benchmark.

    data: {benchmark: {"differences": [second - first, ...], "correlation": r, "flips": share}}.
    Raises ValueError if the file is missing or has another form.
    """
    found = _judge_variance(data)
    with styled():
        figure = Figure(figsize=(5.2 * len(found), 3.8), layout="constrained")
        axes_B = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (benchmark, values) in zip(axes_B, found.items(), strict=True):
            scale = SCALES.get(benchmark.split("-")[0], 1.0)
            percent = 100 * np.asarray(values["differences"], dtype=float) / scale
            edges = np.linspace(-100, 100, 42)
            axes.hist(percent, edges, weights=np.full(len(percent), 100 / len(percent)), color="#0072B2")
            axes.set_title(benchmark)
            axes.set_xlabel("second judgment less first, % of the scale")
            lines = [f"n = {len(percent)}", f"standard deviation {percent.std():.1f} %"]
            lines += [f"same answer {100 * np.mean(percent == 0):.0f} %"]
            lines += (
                [f"correlation {values['correlation']:.2f}"] if values.get("correlation") is not None else []
            )
            lines += [f"flipped {100 * values['flips']:.0f} %"] if values.get("flips") is not None else []
            axes.text(
                0.98, 0.97, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", fontsize=9
            )
        axes_B[0].set_ylabel("share of judgments, %")
        figure.suptitle("The judge asked twice about identical answers", x=0.01, ha="left", fontweight="bold")
        return save_figure(figure, folder, "figure1")


def _judge_variance(data: Path) -> Mapping[str, Any]:
    make = "python scripts/judge_variance.py"
    if not data.is_file():
        raise ValueError(f"no judge variance at {data}. Make it: {make}")
    found = json.loads(data.read_text("utf-8"))
    usable = {name: v for name, v in found.items() if isinstance(v, dict) and v.get("differences")}
    if not usable:
        raise ValueError(f"{data} holds no differences of any benchmark. Make it again: {make}")
    return usable


def figure2(runs: Sequence[RunView], paper: Paper, folder: Path) -> list[Path]:
    """Draw the training rewards of the six methods, a figure a model."""
    refuse_mixtures(runs)
    paths = []
    for model, own in by_model(runs):
        cells = group(own, lambda run: run["method"])
        panels = [(METHOD_TITLES[method], cells.get(method)) for method in FIGURE2]
        title = f"Figure 2: training rewards of six methods, {paper.title(model)}"
        name = figure_name("figure2", runs, model)
        paths += figure_paths(folder, name)
        reward_panels(panels, title, figure_facts(own), *figure_paths(folder, name))
    return paths


def figure3(runs: Sequence[RunView], paper: Paper, folder: Path) -> list[Path]:
    """Draw SGDPO's training rewards over ratios with DPO, six panels, a figure a model."""
    refuse_mixtures(runs)
    paths = []
    for model, own in by_model(runs):
        grid = group([run for run in own if ratio_of(run)], ratio_of)
        dpo = group([run for run in own if run["method"] == "dpo"], lambda run: "dpo").get("dpo")
        panels = [(f"SGDPO, r1 {r[0]:g}, r2 {r[1]:g}", grid[r]) for r in six_ratios(list(grid))]
        title = f"Figure 3: SGDPO's training rewards over ratios, {paper.title(model)}"
        name = figure_name("figure3", runs, model)
        paths += figure_paths(folder, name)
        reward_panels([*panels, ("DPO", dpo)], title, figure_facts(own), *figure_paths(folder, name))
    return paths


def six_ratios(ratios: Sequence[Ratio]) -> list[Ratio]:
    """Return the five ratios to show: all if there are no more, else the diagonal, else evenly spread."""
    ordered = sorted(ratios, key=lambda ratio: (sum(ratio), ratio))
    if len(ordered) <= 5:
        return ordered
    if set(DIAGONAL) <= set(ordered):
        return list(DIAGONAL)
    return [ordered[round(i * (len(ordered) - 1) / 4)] for i in range(5)]
