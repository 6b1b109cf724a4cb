"""One sweep in order: expand, check every cell, leave out the finished, launch, say how it went and what came out."""

import os
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from rich.console import Console

from lab.sweeps.cells import Cell, Composer, SweepError, check_cells, expand, label_cells, missing_starts
from lab.sweeps.pool import OUTPUT, Outcome, Runner, Task
from lab.sweeps.screen import Screen, clock
from lab.sweeps.status import Roster, last_line, open_roster, read_roster, what_again
from sgdpo.config.compose import options_apart
from sgdpo.config.schema import RunConfig
from sgdpo.processes import termination_as_exit
from sgdpo.runs.records import RunView, read_runs, view_run

# The record's field `shared`: what a run found made by another one, and what it made itself.
SHARED = (
    ("start", "SFT start", "trained"),
    ("tokens", "tokenised set", "built"),
    ("reference", "reference cache", "built"),
)


def run_sweep(sweeper: Any, arguments: Sequence[str]) -> list[Any]:
    """Run a sweep through the launcher that the sweeper holds.

    Returns the launcher's results. Raises SweepError if the sweep is not valid, SystemExit(1) if a cell
    failed, SystemExit(130) after Ctrl-C.
    """
    if sweeper.search is not None:
        from lab.sweeps.search import run_search  # optuna

        run, metric = run_search(sweeper, arguments, _task(sweeper.launcher), this_command())
        _show_results(run, metric)
        return []
    cells = _checked(sweeper, arguments)
    first = cells[0].config
    todo = [cell for cell in cells if first.force or not cell.finished]
    if first.dry_run:
        print(preview(cells, todo))
        return []
    with open_roster(cells, this_command()) as roster:
        print(f"{len(cells)} cells are valid; {len(cells) - len(todo)} are finished already", flush=True)
        began = time.monotonic()
        batch = [list(cell.overrides) for cell in todo]
        results = sweeper.launcher.launch(batch, initial_job_idx=0) if todo else []
        failed = _failures(todo, results, roster)
        print(summarise(cells, todo, failed, time.monotonic() - began, roster.command), flush=True)
    _show_results(first)
    if failed:
        raise SystemExit(1)
    return [results]


def this_command() -> str:
    """Return what was typed, as one types it in the repository."""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(["python", str(script), *sys.argv[1:]])


def _checked(sweeper: Any, arguments: Sequence[str]) -> list[Cell]:
    loader, n_jobs = sweeper.hydra_context.config_loader, sweeper.config.n_jobs
    if n_jobs < 1:
        raise SweepError(f"n_jobs must be at least 1, not {n_jobs}; it is how many cells run at a time")
    # Unresolved, from the config itself: ${ratio.chosen} in a grid means each cell's own value.
    grids = OmegaConf.to_container(sweeper.config.hydra.sweeper, resolve=False)
    composer = Composer(loader, sweeper.config)
    return check_cells(expand(grids["params"], grids["also"], arguments, composer.parser), composer)


def launch(
    launcher: Any, batch: Sequence[Sequence[str]], n_jobs: int, runner: type[Runner]
) -> list[JobReturn]:
    """Run the cells of a batch, show them and tell the roster; one JobReturn each, in the batch's order."""
    composer = Composer(launcher.hydra_context.config_loader, launcher.config)
    cells = [composer.cell(overrides) for overrides in batch]
    roster = read_roster(cells[0].folder.parent)
    if roster is None or roster.pid != os.getpid():
        raise SweepError(
            "the launchers of conf/launcher run under this repository's sweeper; leave hydra/sweeper=... out"
        )
    labels = {name: entry["label"] for name, entry in roster.cells.items()}
    screen = Screen(Console(highlight=False, soft_wrap=True), labels, len(labels) - len(cells), n_jobs)
    with termination_as_exit(), screen:
        outcomes = runner(_task(launcher), launcher.params, screen, roster).run(cells)
    by_name = {outcome.cell.name: outcome for outcome in outcomes}
    return [_job_return(by_name[cell.name]) for cell in cells]


def _task(launcher: Any) -> Task:
    function = launcher.task_function
    script = sys.modules[function.__module__].__file__
    assert script is not None, "the task function must be defined in a file, which the workers import"
    return Task(Path(script).resolve(), function.__name__)


def _job_return(outcome: Outcome) -> JobReturn:
    status = JobStatus.FAILED if outcome.error is not None else JobStatus.COMPLETED
    result = JobReturn(overrides=outcome.cell.overrides, task_name=outcome.cell.name, status=status)
    result.return_value = str(outcome.cell.folder) if outcome.error is None else RuntimeError(outcome.error)
    return result


def _failures(todo: Sequence[Cell], results: Sequence[JobReturn], roster: Roster) -> dict[str, str]:
    """Return why cells failed, by name: the launcher's word, and the record's where it has none."""
    failed = {}
    for cell, result in zip(todo, results, strict=True):
        run = view_run(cell.folder)
        if result.status == JobStatus.FAILED:
            failed[cell.name] = str(result._return_value)
        elif run.status != "finished":
            failed[cell.name] = run.error or f"its record says {run.status}"
    for cell in todo:
        roster.note(cell.name, failed.get(cell.name))
    return failed


def summarise(
    cells: Sequence[Cell], todo: Sequence[Cell], failed: Mapping[str, str], seconds: float, command: str
) -> str:
    """Return the closing text of a sweep: what was shared, which cells failed, how to run them again.

    failed: {cell name: why}.
    """
    before = f" ({len(cells) - len(todo)} of them before)" if len(todo) < len(cells) else ""
    done = len(cells) - len(failed)
    lines = [f"{done} of {len(cells)} cells done{before}, {len(failed)} failed, in {clock(seconds)}"]
    lines += _shared([cell for cell in todo if cell.name not in failed])
    lines += ["failed:"] if failed else []
    for cell in (cell for cell in todo if cell.name in failed):
        lines.append(f"  {cell.name}: {last_line(failed[cell.name])}")
        lines += [f"    output  {cell.folder / OUTPUT}"] if (cell.folder / OUTPUT).exists() else []
        lines += [f"    alone   {_alone(cell)}"]
    lines += [f"run them again ({what_again(command)}): {command}"] if failed else []
    return "\n".join(lines)


def _alone(cell: Cell) -> str:
    """Return the command that runs one cell of this sweep by itself, with the options it was given (--config-dir)."""
    options = [word for word in options_apart(sys.argv[1:])[0] if word not in ("-m", "--multirun")]
    own = [word for word in cell.overrides if not word.startswith(("n_jobs=", "launcher="))]
    return shlex.join(["python", "src/train.py", *options, *own, "hydra.mode=RUN"])


def _shared(cells: Sequence[Cell]) -> list[str]:
    """Count what was made once and used by many; the time that the shared SFT starts saved."""
    shared = [(cell, view_run(cell.folder)["shared"] or {}) for cell in cells]
    lines = []
    for key, words, made in SHARED:
        counts = Counter(fields[key] for _, fields in shared if fields.get(key))
        if counts:
            reused = [cell for cell, fields in shared if fields.get(key) not in (None, made)]
            starts = [cell.run.start.folder for cell in reused if cell.run.start and key == "start"]
            saved = sum(view_run(folder)["seconds"] or 0.0 for folder in starts)
            note = f", {clock(saved)} of training saved" if saved else ""
            lines.append(f"  {words}: {made} {counts[made]}×, reused {len(reused)}×{note}")
    return ["shared by the cells that ran now:", *lines] if lines else []


def _show_results(run: RunConfig, metric: str | None = None) -> None:
    """End the sweep with what came out of it; a sweep of which nothing is finished has said why."""
    from lab.sweeps.results import experiment_results  # scipy

    if any(view.status == "finished" for view in read_runs(Path(run.outputs), run.experiment)):
        table = experiment_results(Path(run.outputs), run.experiment, metric).table()
        print(f"\n{table.console()}\nagain: make results EXPERIMENT={run.experiment}", flush=True)


def preview(cells: Sequence[Cell], todo: Sequence[Cell]) -> str:
    """Return what a sweep would do, and how long: from the work of each run and the measured speed of its model."""
    labels = label_cells([cell.overrides for cell in cells])
    open_names = {cell.name for cell in todo}
    lines = [
        f"  {'would run' if cell.name in open_names else 'finished '}  {label}   {cell.name}"
        for cell, label in zip(cells, labels, strict=True)
    ]
    about = "time not known yet"
    if todo and (seconds := estimate(todo)) is not None:
        about = f"about {clock(seconds / todo[0].config.n_jobs)} with n_jobs={todo[0].config.n_jobs}"
    return "\n".join([*lines, f"{len(cells)} cells, {len(todo)} would run: {about}; nothing was started"])


def estimate(todo: Sequence[Cell]) -> float | None:
    """Guess the seconds that cells and the SFT starts they lack take, one after the other; None if nothing tells.

    A run takes its tokens over the tokens a second, and what comes beside training (start-up, evaluation), both
    as finished runs of the same model and phase had them.
    """
    runs = [start.config for start in missing_starts(todo)] + [cell.config for cell in todo]
    finished = [run for run in read_runs(Path(todo[0].config.outputs)) if run.status == "finished"]
    work: dict[str, int] = {}
    guesses = [_guess(run, finished, work) for run in runs]
    return None if None in guesses else sum(guesses)


def _guess(run: RunConfig, finished: Sequence[RunView], work: dict[str, int]) -> float | None:
    like = [
        view
        for view in finished
        if (view["model"], view["phase"]) == (run.model.name, run.method["phase"])
        and ((view["final"] or {}).get("train") or {}).get("tokens_per_second")
    ]
    if not like:
        return None
    speed = statistics.median(view["final"]["train"]["tokens_per_second"] for view in like)
    return _tokens(run, work) / speed + statistics.median(_seconds_beside_training(view) for view in like)


def _seconds_beside_training(view: RunView) -> float:
    batch = view["settings"]["optimizer"]["batch_size"]
    return max(0.0, view["seconds"] - view.steps_taken * batch / view["final"]["train"]["pairs_per_second"])


def _tokens(run: RunConfig, work: dict[str, int]) -> int:
    """Return the tokens that a run trains on, counted once for all runs of the same data and batches."""
    from lab.plan.planner import workload  # transformers

    key = repr((run.data, run.model, run.optimizer, run.method["phase"], run.trainer.layout))
    if key not in work:
        whole = workload(run)
        work[key] = round(whole.tokens / whole.examples * whole.steps * run.optimizer.batch_size)
    return work[key]
