"""What a sweep shows while it runs: a live view on a terminal, one line an event elsewhere."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lab.sweeps.cells import Cell
from lab.sweeps.pool import OUTPUT, Outcome
from lab.sweeps.progress import clock, describe_running

REFRESH_SECONDS = 0.5


@dataclass
class Screen:
    """Show the cells of a sweep; use it as a context.

    labels: the short name of each cell by its run name. skipped: cells that were finished before.
    """

    console: Console
    labels: dict[str, str]
    skipped: int
    n_jobs: int
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

    def started(self, cell: Cell) -> None:
        """Take note that a cell starts."""
        self.running[cell.name] = (cell, time.monotonic())
        if self.live is None:
            self._print(f"start   {self.labels[cell.name]}")

    def ended(self, outcome: Outcome) -> None:
        """Print how a cell ended at once, a failure with its traceback."""
        cell = outcome.cell
        del self.running[cell.name]
        self.outcomes.append(outcome)
        if outcome.error is None:
            self._print(f"done    {self.labels[cell.name]}  ({clock(outcome.seconds)})")
        else:
            self._print(f"FAILED  {self.labels[cell.name]}  ({clock(outcome.seconds)})", style="bold red")
            self.console.print(Text(outcome.error.rstrip()))
            self.console.print(Text(f"        all its output: {cell.folder / OUTPUT}"))

    def tick(self) -> None:
        """Refresh the live view if it is due."""
        if self.live is not None and time.monotonic() - self.drawn > REFRESH_SECONDS:
            self.drawn = time.monotonic()
            self.live.update(self.draw(), refresh=True)

    @property
    def total(self) -> int:
        """Return how many cells the sweep has, the skipped ones included."""
        return len(self.labels)

    @property
    def failed(self) -> int:
        """Return how many cells failed so far."""
        return sum(outcome.error is not None for outcome in self.outcomes)

    @property
    def done(self) -> int:
        """Return how many cells are finished, the skipped ones included."""
        return self.skipped + len(self.outcomes) - self.failed

    def seconds_left(self) -> float | None:
        """Estimate the rest from the median cell so far; None before the first one ended."""
        times = [outcome.seconds for outcome in self.outcomes if outcome.error is None]
        if not times:
            return None
        usual = statistics.median(times)
        waiting = self.total - self.skipped - len(self.outcomes) - len(self.running)
        rest = sum(max(usual - (time.monotonic() - since), 0.0) for _, since in self.running.values())
        return (waiting * usual + rest) / min(self.n_jobs, max(1, waiting + len(self.running)))

    def headline(self) -> str:
        """Return the counts and the time left in one line."""
        left = self.seconds_left()
        return (
            f"{self.done} of {self.total} cells done, {len(self.running)} running, {self.failed} failed, "
            + (f"{clock(left)} left" if left is not None else "time left not known yet")
        )

    def draw(self) -> Group:
        """Return the live view: counts, a bar, and what each running cell does."""
        table = Table.grid(padding=(0, 2))
        for name, (cell, since) in self.running.items():
            now = describe_running(cell.folder, cell.start.name if cell.start else None)
            table.add_row(escape(self.labels[name]), clock(time.monotonic() - since), Text(now))
        bar = ProgressBar(total=max(1, self.total), completed=self.done + self.failed, width=60)
        return Group(Text(self.headline()), Padding(bar), table)  # a bar alone does not end its line

    def _print(self, text: str, style: str = "") -> None:
        number = f"[{self.done + self.failed}/{self.total}] "
        self.console.print(Text(number + text, style=style))
