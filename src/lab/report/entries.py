"""Turn cells into entries: a number with its error, a dash with the reason, or "failed"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lab.report.cells import Cell, Estimate
from lab.report.paper import Paper
from sgdpo.drawing.table import DASH, Entry
from sgdpo.runs.records import RunView

Read = Callable[[RunView], tuple[float | None, float | None]]


def number_entry(cell: Cell | None, read: Read, digits: int, seeds: Sequence[int], what: str) -> Entry:
    """Return a cell's entry for one column; `seeds` are those of the whole table, `what` names the number."""
    if cell is None or not cell.runs:
        return Entry(note="not run", status="missing")
    estimate = cell.estimate(read)
    if estimate is None:
        return _without_number(cell, what)
    lacking = [seed for seed in seeds if seed not in {run["seed"] for run in cell.finished if has(run, read)}]
    note = _incomplete(cell, lacking, len(seeds), what) if lacking else None
    return Entry(
        estimate_text(estimate, digits),
        note=note,
        value=estimate.value,
        error=estimate.error,
        seeds=estimate.seeds,
        status="partial" if lacking else "finished",
    )


def has(run: RunView, read: Read) -> bool:
    """Tell whether a run has the number."""
    return read(run)[0] is not None


def estimate_text(estimate: Estimate, digits: int) -> str:
    """Return "27.53 ± 0.41", or the number alone if it has no error."""
    error = "" if estimate.error is None else f" ± {estimate.error:.{digits}f}"
    return f"{estimate.value:.{digits}f}".replace("-", "−") + error


def _without_number(cell: Cell, what: str) -> Entry:
    if cell.failed and not cell.finished:
        return Entry("failed", note="; ".join(map(_reason, cell.failed)), status="failed")
    if any(what in (run["eval"] or {}) for run in cell.finished):
        return Entry(note="no such number: this is what the others are compared with", status="missing")
    if cell.finished:
        return Entry(note=f"no {what}: these runs are not evaluated", status="missing")
    return Entry(note="; ".join(map(_reason, cell.runs)), status=cell.runs[0].status)


def _incomplete(cell: Cell, lacking: Sequence[int], total: int, what: str) -> str:
    runs = {run["seed"]: run for run in cell.runs}
    reasons = []
    for seed in lacking:
        run = runs.get(seed)
        if run is not None and run.status == "finished":
            reasons.append(f"seed {seed} has no {what}")
        else:
            reasons.append(_reason(run) if run is not None else f"seed {seed} did not run")
    return f"{total - len(lacking)} of {total} seeds: " + ", ".join(reasons)


def _reason(run: RunView) -> str:
    """Return "seed 43 failed (loss is NaN at step 2)" or "seed 43 is running"."""
    if run.status == "failed":
        last = (run.error or "no reason recorded").strip().splitlines()[-1]
        return f"seed {run['seed']} failed ({last[:120]})"
    return f"seed {run['seed']} is {run.status}"


def text(value: str, note: str | None = None) -> Entry:
    """Return an entry that is text."""
    return Entry(value, note=note)


def paper_entry(value: float | None, digits: int) -> Entry:
    """Return one of the paper's numbers, a dash if it is not known."""
    if value is None:
        return Entry(DASH, status="unknown")
    return Entry(f"{value:.{digits}f}", value=value, status="paper")


def facts(runs: Sequence[RunView], paper: Paper, judge: str | None) -> list[str]:
    """Return what a table must state: models, data, judge, seeds, commit, and what ± means."""
    counted = [run for run in runs if run.status != "broken"]
    models = ", ".join(paper.title(model) for model in _values(counted, "model"))
    parts = [f"Model: {models}", f"data: {', '.join(_values(counted, 'dataset'))}"]
    parts += [f"judge: {judge}"] if judge else []
    parts += [f"seeds: {', '.join(_values(counted, 'seed'))}", f"commit: {', '.join(commits(counted))}"]
    lines = ["; ".join(parts) + "."]
    broken = [run for run in runs if run.status == "broken"]
    lines += [f"Left out, unreadable record: {run.experiment}/{run.name} ({run.error})." for run in broken]
    return lines


def commits(runs: Sequence[RunView]) -> list[str]:
    """Return the short commits that made the runs, marked where the code differed from the commit."""
    found = []
    for run in runs:
        git = run["git"] or {}
        name = (git.get("commit") or "unknown")[:9] + (" with changes" if git.get("dirty") else "")
        if name not in found:
            found.append(name)
    return sorted(found) or ["unknown"]


def error_fact(runs: Sequence[RunView]) -> str:
    """Return what the error after ± is, by the number of seeds."""
    seeds = len({run["seed"] for run in runs if run.status == "finished"})
    over = f"over {seeds} seeds" if seeds > 1 else "over prompts (one seed)"
    return f"± is one standard error {over}."


def _values(runs: Sequence[RunView], key: str) -> list[str]:
    return [str(value) for value in sorted({run[key] for run in runs if run[key] is not None})]
