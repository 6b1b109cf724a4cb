"""The ratio grid of an experiment as pictures, beside its records and in W&B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.report.heat import ratio_heat_maps
from lab.report.paper import load_paper
from sgdpo.runs.records import require_runs
from sgdpo.runs.tracking import choose_mode


def draw_experiment(outputs: Path, experiment: str, metric: str) -> list[Path]:
    """Draw one heat map a model into the experiment's folder, png and svg, DPO's value on the scale.

    Raises ValueError if there are no runs, or none with ratios has the metric.
    """
    runs = require_runs(outputs, experiment, f"python src/train.py sweep=ratio_grid experiment={experiment}")
    preference = [run for run in runs if run["phase"] != "sft"]
    return ratio_heat_maps(preference, metric, load_paper(), Path(outputs) / experiment)


def send_pictures(pictures: Sequence[Path], experiment: str, metric: str) -> str:
    """Log the png pictures as one W&B run of the experiment's group; return the mode it was written in."""
    mode = choose_mode("auto")
    if mode == "disabled":
        return mode
    import wandb

    settings = wandb.Settings(console="off", silent=True, init_timeout=20.0)
    run = wandb.init(
        project="sgdpo", group=experiment, job_type="heatmap", name=f"{experiment}-heatmap",
        mode=mode, dir=str(pictures[0].parent), reinit="create_new", settings=settings,
    )  # fmt: skip
    run.log({f"heatmap/{metric}/{p.stem}": wandb.Image(str(p)) for p in pictures if p.suffix == ".png"})
    run.finish()
    return mode
