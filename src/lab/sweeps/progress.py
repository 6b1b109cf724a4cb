"""How far a run is, read from its folder while it runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdpo.runs.records import METRICS, RunView, view_run

TAIL_BYTES = 1 << 14


@dataclass(frozen=True)
class Progress:
    """Hold a running run's step, its last step and the seconds left; None where that is not known yet."""

    step: int
    steps: int | None
    seconds_left: float | None

    def __str__(self) -> str:
        of = f"/{self.steps}" if self.steps else ""
        left = f", {clock(self.seconds_left)} left" if self.seconds_left is not None else ""
        return f"step {self.step}{of}{left}"


def run_progress(run: RunView) -> Progress:
    """Return how far a run is, from the end of its metrics and the steps its record plans."""
    row = _last_training_row(run.folder / METRICS)
    steps, step = run["steps"], int(row.get("step", 0))
    speed = row.get("pairs_per_second")
    batch = ((run["settings"] or {}).get("optimizer") or {}).get("batch_size")
    left = (steps - step) * batch / speed if steps and speed and batch else None
    return Progress(step, steps, left)


def describe_running(folder: Path, start: str | None) -> str:
    """Say what a cell does now: training at a step, its SFT start at a step, or getting ready."""
    run = view_run(folder)
    if run.status == "running":
        return str(run_progress(run))
    if start is not None:
        sft = view_run(folder.parent / start)
        if sft.status == "running":
            return f"SFT start: {run_progress(sft)}"
    return "getting ready"


def clock(seconds: float) -> str:
    """Return a duration as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _last_training_row(path: Path) -> dict[str, Any]:
    """Read the last whole training row without reading the file: this runs several times a second."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("split") == "train":
            return row
    return {}
