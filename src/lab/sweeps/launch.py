"""What Hydra's two launchers of this repository share: cells composed, shown, and told to the roster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from rich.console import Console

from lab.sweeps.cells import Cell, Composer
from lab.sweeps.pool import Outcome, Pool, Task, Watcher, slots_for
from lab.sweeps.roster import Roster, read_roster
from lab.sweeps.screen import Screen
from sgdpo.processes import termination_as_exit


class Runner(Protocol):
    """What runs cells: processes of this machine, or jobs of a cluster."""

    def run(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Return how every cell ended; leave nothing running if an exception ends it."""


class CellError(RuntimeError):
    """Carry why a cell failed to Hydra's JobReturn."""


class RosterKeeper:
    """Keep in the roster why cells failed, for a reader who looks while the sweep runs."""

    def __init__(self, roster: Roster):
        self.roster = roster

    def started(self, cell: Cell) -> None:
        """Forget why the cell failed before."""
        self.roster.note(cell.name, None)

    def ended(self, outcome: Outcome) -> None:
        """Note why the cell failed."""
        self.roster.note(outcome.cell.name, outcome.error)

    def tick(self) -> None:
        """Say that the sweep lives."""
        self.roster.beat()


def launch_local(launcher: Any, batch: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run the cells of a batch in processes of this machine; one JobReturn each, in the batch's order."""

    def runner(cells: Sequence[Cell], watchers: Sequence[Watcher], roster: Roster) -> Runner:
        return Pool(_task(launcher), slots_for(cells, launcher.params["n_jobs"]), watchers)

    return _launch(launcher, batch, launcher.params["n_jobs"], runner)


def launch_slurm(launcher: Any, batch: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run the cells of a batch as Slurm jobs; one JobReturn each, in the batch's order."""
    from lab.sweeps.slurm import SlurmQueue  # submitit

    def runner(cells: Sequence[Cell], watchers: Sequence[Watcher], roster: Roster) -> Runner:
        return SlurmQueue(_task(launcher), launcher.params, watchers, roster)

    return _launch(launcher, batch, launcher.params["array_parallelism"], runner)


def _launch(
    launcher: Any, batch: Sequence[Sequence[str]], n_jobs: int, make: Callable[..., Runner]
) -> list[JobReturn]:
    composer = Composer(launcher.hydra_context.config_loader, launcher.config)
    cells = [composer.cell(overrides) for overrides in batch]
    roster = read_roster(cells[0].folder.parent)
    assert roster is not None, "a launcher of this repository runs under its sweeper"
    labels = {name: entry["label"] for name, entry in roster.cells.items()}
    screen = Screen(Console(highlight=False, soft_wrap=True), labels, len(labels) - len(cells), n_jobs)
    with termination_as_exit(), screen:
        outcomes = make(cells, [screen, RosterKeeper(roster)], roster).run(cells)
    by_name = {outcome.cell.name: outcome for outcome in outcomes}
    return [_job_return(by_name[cell.name]) for cell in cells]


def _task(launcher: Any) -> Task:
    """Find the script that defines the application's function, for the workers to import."""
    function = launcher.task_function
    script = sys.modules[function.__module__].__file__
    assert script is not None, "the task function must be defined in a file"
    return Task(Path(script).resolve(), function.__name__)


def _job_return(outcome: Outcome) -> JobReturn:
    failed = outcome.error is not None
    status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    result = JobReturn(overrides=outcome.cell.overrides, task_name=outcome.cell.name, status=status)
    result.return_value = CellError(outcome.error) if failed else str(outcome.cell.folder)
    return result
