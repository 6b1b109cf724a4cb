"""One sweep in order: expand, check every cell, leave out what is finished, launch, say how it went."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from lab.sweeps.cells import Cell, Composer
from lab.sweeps.check import check_cells
from lab.sweeps.errors import SweepError
from lab.sweeps.expand import expand
from lab.sweeps.plan import Plan, open_plan
from lab.sweeps.status import preview
from lab.sweeps.summary import summarise_sweep
from sgdpo.runs.records import view_run


def run_sweep(sweeper: Any, arguments: Sequence[str]) -> list[Any]:
    """Run a sweep through the launcher that the sweeper holds.

    Returns the launcher's results. Raises SweepError if the sweep is not valid, SystemExit(1) if a cell
    failed, SystemExit(130) after Ctrl-C.
    """
    cells = _checked(sweeper, arguments)
    first = cells[0].run
    todo = [cell for cell in cells if first.force or not cell.finished]
    if first.dry_run:
        print(preview(cells, todo))
        return []
    plan = open_plan(cells, this_command())
    print(f"{len(cells)} cells are valid; {len(cells) - len(todo)} are finished already", flush=True)
    began = time.monotonic()
    results = _launch(sweeper, todo, plan) if todo else []
    failed = _failures(todo, results, plan)
    print(summarise_sweep(cells, todo, failed, time.monotonic() - began, plan.command), flush=True)
    if failed:
        raise SystemExit(1)
    return [results]


def this_command() -> str:
    """Return the command that was typed, as one types it in the repository."""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(["python", str(script), *sys.argv[1:]])


def _checked(sweeper: Any, arguments: Sequence[str]) -> list[Cell]:
    loader, n_jobs = sweeper.hydra_context.config_loader, sweeper.config.n_jobs
    if n_jobs < 1:
        raise SweepError(
            f"error: n_jobs must be at least 1, not {n_jobs}; it is how many cells run at a time"
        )
    # Unresolved, from the config itself: ${ratio.chosen} in a grid means each cell's own value.
    grids = OmegaConf.to_container(sweeper.config.hydra.sweeper, resolve=False)
    batch = expand(grids["params"], grids["also"], arguments, OverridesParser.create(config_loader=loader))
    return check_cells(batch, Composer(loader, sweeper.config))


def _launch(sweeper: Any, todo: Sequence[Cell], plan: Plan) -> Sequence[Any]:
    try:
        return sweeper.launcher.launch([list(cell.overrides) for cell in todo], initial_job_idx=0)
    except KeyboardInterrupt:
        print(f"\nstopped; nothing runs any more. The same command continues: {plan.command}", flush=True)
        raise SystemExit(130) from None


def _failures(todo: Sequence[Cell], results: Sequence[Any], plan: Plan) -> dict[str, str]:
    """Return why cells failed, by name: the launcher's word, and the record's where it has none."""
    failed = {}
    for cell, result in zip(todo, results, strict=True):
        run = view_run(cell.folder)
        if result.status == JobStatus.FAILED:
            failed[cell.name] = str(result._return_value)
        elif run.status != "finished":
            failed[cell.name] = run.error or f"its record says {run.status}"
    for cell in todo:
        plan.note(cell.name, failed.get(cell.name))
    return failed
