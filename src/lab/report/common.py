"""What every figure of several runs shares: its file names and the facts it must state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lab.report.entries import commits
from sgdpo.drawing.style import save
from sgdpo.runs.records import RunView


def by_model(runs: Sequence[RunView]) -> list[tuple[str, list[RunView]]]:
    """Return the readable runs of each model, by the model's name."""
    usable = [run for run in runs if run.status != "broken"]
    models = sorted({run["model"] for run in usable})
    return [(model, [run for run in usable if run["model"] == model]) for model in models]


def figure_name(figure: str, runs: Sequence[RunView], model: str) -> str:
    """Return the figure's file name: the first model has the plain name, another its own."""
    first = by_model(runs)[0][0]
    return figure if model == first else f"{figure}-{model}"


def figure_facts(runs: Sequence[RunView]) -> str:
    """Return what stands below a figure: seeds and their band, data, commit."""
    counted = [run for run in runs if run["method"] != "sft"] or list(runs)
    seeds = sorted({run["seed"] for run in counted})
    data = ", ".join(sorted({str(run["dataset"]) for run in counted}))
    what = "band: range over seeds" if len(seeds) > 1 else "one seed"
    return f"{what} {', '.join(map(str, seeds))}; data {data}; commit {', '.join(commits(counted))}"


def figure_paths(folder: Path, name: str) -> list[Path]:
    """Return the files of a figure."""
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure's files and return their paths."""
    save(figure, *figure_paths(folder, name))
    return figure_paths(folder, name)
