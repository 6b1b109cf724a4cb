"""Launch cells on this machine: n at a time, with one live view."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from rich.console import Console

from lab.sweeps.cells import Cell, Composer, label_cells, make_cell
from lab.sweeps.errors import SweepError
from lab.sweeps.plan import Plan, read_plan
from lab.sweeps.pool import Outcome, Pool, Task
from lab.sweeps.processes import gpu_slots, share_of_cores, visible_gpus
from lab.sweeps.screen import Screen
from sgdpo.processes import termination_as_exit


class CellError(RuntimeError):
    """Carry why a cell failed to Hydra's JobReturn."""


class PlanKeeper:
    """Keep in the sweep's plan why cells failed, for a reader who looks while the sweep runs."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def started(self, cell: Cell) -> None:
        """Forget why the cell failed before."""
        self.plan.note(cell.name, None)

    def ended(self, outcome: Outcome) -> None:
        """Note why the cell failed."""
        self.plan.note(outcome.cell.name, outcome.error)

    def tick(self) -> None:
        """Nothing is due in between."""


def launch_cells(launcher: Any, batch: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run the cells of a batch and return one JobReturn each, in the batch's order."""
    composer = Composer(launcher.hydra_context.config_loader, launcher.config)
    cells = [make_cell(overrides, composer.compose(overrides)) for overrides in batch]
    n_jobs = min(launcher.n_jobs, len(cells))
    plan = read_plan(cells[0].folder.parent)
    labels = dict(zip((c.name for c in cells), label_cells(batch), strict=True))
    if plan is not None:
        labels = {name: entry["label"] for name, entry in plan.cells.items()}
    screen = Screen(Console(highlight=False, soft_wrap=True), labels, len(labels) - len(cells), n_jobs)
    watchers = [screen, PlanKeeper(plan)] if plan is not None else [screen]
    with screen, termination_as_exit():
        outcomes = Pool(_task(launcher.task_function), _slots(cells, launcher.n_jobs)[:n_jobs], watchers).run(
            cells
        )
    by_name = {outcome.cell.name: outcome for outcome in outcomes}
    return [_job_return(by_name[cell.name]) for cell in cells]


def _slots(cells: Sequence[Cell], n_jobs: int) -> list[dict[str, str]]:
    """Return the environment of each slot: its share of the cores, its GPUs.

    They depend on n_jobs, not on how many cells are left: a continued sweep computes with the same threads.
    """
    if n_jobs < 1:
        raise SweepError(f"error: n_jobs must be at least 1, not {n_jobs}: how many cells run at a time")
    gpus = [] if all(cell.run.device == "cpu" for cell in cells) else visible_gpus()
    processes = max(cell.processes for cell in cells)
    return [slot | share_of_cores(n_jobs) for slot in gpu_slots(gpus, n_jobs, processes)]


def _task(function: Any) -> Task:
    """Find the script that defines the application's function, for the workers to import."""
    script = sys.modules[function.__module__].__file__
    assert script is not None, "the task function must be defined in a file"
    return Task(Path(script).resolve(), function.__name__)


def _job_return(outcome: Outcome) -> JobReturn:
    failed = outcome.error is not None
    status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    result = JobReturn(overrides=outcome.cell.overrides, task_name=outcome.cell.name, status=status)
    result.return_value = CellError(outcome.error) if failed else str(outcome.cell.folder)
    return result
