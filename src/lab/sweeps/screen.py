"""What a sweep shows while it runs: a live view on a terminal, one line an event elsewhere; how far a run is."""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lab.sweeps.cells import Cell
from lab.sweeps.pool import OUTPUT, Outcome
from sgdpo.runs.records import METRICS, RunView, view_run

REFRESH_SECONDS = 0.5
TAIL_BYTES = 1 << 14


@dataclass
class Screen:
    """Show the cells of a sweep; use it as a context.

    labels: the short name of each cell by its run name. skipped: cells that were finished before. expected: cells in
    all, where they are not all known yet.
    """

    console: Console
    labels: dict[str, str]
    skipped: int
    n_jobs: int
    expected: int = 0
    running: dict[str, tuple[Cell, float]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    live: Live | None = None
    drawn: float = 0.0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self.live = Live(self.draw(), console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def cell_started(self, cell: Cell) -> None:
        self.running[cell.name] = (cell, time.monotonic())
        if self.live is None:
            self._print(f"start   {self.labels[cell.name]}")

    def cell_ended(self, outcome: Outcome) -> None:
        """Print how a cell ended at once, a failure with its traceback."""
        cell = outcome.cell
        del self.running[cell.name]
        self.outcomes.append(outcome)
        if outcome.error is None:
            self._print(f"done    {self.labels[cell.name]}  ({clock(outcome.seconds)})")
        elif outcome.stopped:
            self._print(f"stopped {self.labels[cell.name]}  ({clock(outcome.seconds)}): {outcome.error}")
        else:
            self._print(f"FAILED  {self.labels[cell.name]}  ({clock(outcome.seconds)})", style="bold red")
            self.console.print(Text(outcome.error.rstrip()))
            if (cell.folder / OUTPUT).exists():  # a cell whose start failed has none
                self.console.print(Text(f"        all its output: {cell.folder / OUTPUT}"))

    def tick(self) -> None:
        if self.live is not None and time.monotonic() - self.drawn > REFRESH_SECONDS:
            self.drawn = time.monotonic()
            self.live.update(self.draw(), refresh=True)

    @property
    def total(self) -> int:
        return max(len(self.labels), self.expected)

    @property
    def failed(self) -> int:
        return sum(outcome.error is not None and not outcome.stopped for outcome in self.outcomes)

    @property
    def ended_so_far(self) -> int:
        return self.skipped + len(self.outcomes)

    def seconds_left(self) -> float | None:
        """Estimate the rest from the median cell so far; None before the first one ended."""
        times = [outcome.seconds for outcome in self.outcomes if outcome.error is None]
        if not times:
            return None
        usual = statistics.median(times)
        waiting = self.total - self.ended_so_far - len(self.running)
        rest = sum(max(usual - (time.monotonic() - since), 0.0) for _, since in self.running.values())
        return (waiting * usual + rest) / min(self.n_jobs, max(1, waiting + len(self.running)))

    def headline(self) -> str:
        left = self.seconds_left()
        done = f"{self.ended_so_far - self.failed} of {self.total} cells done"
        rest = "time left not known yet" if left is None else f"{clock(left)} left"
        return f"{done}, {len(self.running)} running, {self.failed} failed, {rest}"

    def draw(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, (cell, since) in self.running.items():
            now = describe_running(cell.folder, cell.run.start.folder if cell.run.start else None)
            table.add_row(escape(self.labels[name]), clock(time.monotonic() - since), Text(now))
        bar = ProgressBar(total=max(1, self.total), completed=self.ended_so_far, width=60)
        return Group(Text(self.headline()), Padding(bar), table)  # a bar alone does not end its line

    def _print(self, text: str, style: str = "") -> None:
        number = f"[{self.ended_so_far}/{self.total}] "
        self.console.print(Text(number + text, style=style))


def run_progress(run: RunView) -> str:
    """Say how far a run is, from the end of its metrics and the steps its record plans: "step 3/20, 0:07 left"."""
    row = _last_training_row(run.folder / METRICS)
    steps, step, speed = run["steps"], int(row.get("step", 0)), row.get("pairs_per_second")
    batch = ((run["settings"] or {}).get("optimizer") or {}).get("batch_size")
    left = f", {clock((steps - step) * batch / speed)} left" if steps and speed and batch else ""
    return f"step {step}{f'/{steps}' if steps else ''}{left}"


def describe_running(folder: Path, start: Path | None) -> str:
    """Say what a cell does now: training at a step, its SFT start at a step, or getting ready."""
    run = view_run(folder)
    if run.status == "running":
        return run_progress(run)
    if start is not None:
        sft = view_run(start)
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
