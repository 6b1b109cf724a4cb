"""How the cells of an experiment stand, from the sweep's roster and the run records; works while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.sweeps.cells import SweepError
from lab.sweeps.roster import ROSTER, Roster, read_roster
from lab.sweeps.screen import clock, run_progress
from sgdpo.runs.records import RunView, list_experiments, read_runs

STATES = ("done", "running", "failed", "interrupted", "missing", "broken")
SYMBOLS = {"done": "✓", "running": "▶", "failed": "✗", "interrupted": "◌", "missing": "–", "broken": "!"}


@dataclass(frozen=True)
class CellState:
    """Hold how one cell stands: one of STATES, and a detail (a step, the last line of an error)."""

    name: str
    label: str
    state: str
    detail: str = ""


def cell_states(roster: Roster, runs: Mapping[str, RunView]) -> list[CellState]:
    """Return the state of every cell of the roster, in its order."""
    return [_state(name, entry, runs.get(name)) for name, entry in roster.cells.items()]


def _state(name: str, entry: Mapping[str, Any], run: RunView | None) -> CellState:
    label, why = entry["label"], last_line(entry["error"])
    if run is None:
        return CellState(name, label, "failed", why) if why else CellState(name, label, "missing")
    if run.status == "finished":
        return CellState(name, label, "done", clock(run["seconds"] or 0))
    if run.status == "running":
        return CellState(name, label, "running", str(run_progress(run)))
    if run.status == "interrupted":
        return CellState(name, label, "failed" if why else "interrupted", why or f"at {run_progress(run)}")
    return CellState(name, label, run.status, last_line(run.error) or why)


def last_line(text: str | None) -> str:
    """Return the last line of an error that says something: the exception's own."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def experiment_status(outputs: Path, experiment: str) -> str:
    """Return the status page of one experiment. Raises SweepError if there is no such experiment."""
    runs = {run.name: run for run in read_runs(outputs, experiment)}
    roster = read_roster(Path(outputs) / experiment)
    if roster is None and not runs:
        known = ", ".join(_experiments(outputs)) or "none yet; python src/train.py sweep=ratio_grid makes one"
        raise SweepError(f"no experiment {experiment!r} under {outputs}. There are: {known}")
    if roster is None:
        roster = _roster_of_runs(Path(outputs) / experiment, runs)
    states = cell_states(roster, runs)
    beside = [run for name, run in runs.items() if name not in roster.cells]
    parts = [f"{experiment}: {_totals(states)}", *render_grid(states), *_details(states), *_beside(beside)]
    return "\n".join([*parts, _next(roster, states, experiment)])


def overview(outputs: Path) -> str:
    """Return one line for every experiment. Raises SweepError if there is none."""
    experiments = _experiments(outputs)
    if not experiments:
        raise SweepError(f"no records under {outputs} yet. Make some: python src/train.py sweep=ratio_grid")
    width = max(map(len, experiments))
    lines = []
    for experiment in experiments:
        runs = {run.name: run for run in read_runs(outputs, experiment)}
        roster = read_roster(Path(outputs) / experiment) or _roster_of_runs(Path(outputs) / experiment, runs)
        running = "  (sweep running)" if roster.command and roster.alive else ""
        lines.append(f"{experiment:{width}}  {_totals(cell_states(roster, runs))}{running}")
    return "\n".join([*lines, "one of them: make status EXPERIMENT=..."])


def _experiments(outputs: Path) -> list[str]:
    rostered = {path.parent.name for path in Path(outputs).glob(f"*/{ROSTER}")}
    return sorted({*list_experiments(outputs), *rostered})


def _roster_of_runs(folder: Path, runs: Mapping[str, RunView]) -> Roster:
    """Stand in for the roster of an experiment that had no sweep: its runs, as they are."""
    entries = {name: {"label": name, "error": None} for name in runs}
    return Roster(folder, "", entries, pid=None)


def _totals(states: Sequence[CellState]) -> str:
    counts = Counter(state.state for state in states)
    return f"{len(states)} cells: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])


def render_grid(states: Sequence[CellState]) -> list[str]:
    """Draw the cells: tables over the two widest axes, a list of the cells that are on none."""
    cells = [
        (dict(_key_value(part) for part in state.label.split() if "=" in part), state) for state in states
    ]
    values: dict[str, dict[str, None]] = {}
    for axes, _ in cells:
        for key, value in axes.items():
            values.setdefault(key, {})[value] = None
    wide = sorted((key for key in values if len(values[key]) > 1), key=lambda key: -len(values[key]))[:2]
    blocks: dict[tuple[str, ...], list[tuple[dict[str, str], CellState]]] = {}
    for axes, state in cells:
        if len(wide) == 2 and all(key in axes for key in wide):
            rest = tuple(f"{key}={value}" for key, value in axes.items() if key not in wide)
        else:
            rest = ("\0",)
        blocks.setdefault(rest, []).append((axes, state))
    lines = []
    for rest, block in blocks.items():
        if rest == ("\0",):
            width = max(len(state.label) for _, state in block)
            lines += ["", *(f"{s.label:{width}}  {_mark(s)}" for _, s in block)]
        else:
            rows, columns = sorted(wide, key=list(values).index)
            lines += ["", *_table(" ".join(rest), rows, columns, block)]
    return lines


def _table(
    title: str, rows: str, columns: str, block: Sequence[tuple[dict[str, str], CellState]]
) -> list[str]:
    at = {(axes[rows], axes[columns]): _mark(state) for axes, state in block}
    row_names, column_names = (list(dict.fromkeys(pair[i] for pair in at)) for i in (0, 1))
    first = max(len(rows) + 1 + max(map(len, row_names)), len(title))
    width = max(len(text) for text in [*at.values(), *(f"{columns}={name}" for name in column_names)])
    lines = [f"{title:{first}}  " + "  ".join(f"{f'{columns}={name}':{width}}" for name in column_names)]
    for row in row_names:
        marks = (at.get((row, column), "") for column in column_names)
        lines.append(f"{f'{rows}={row}':{first}}  " + "  ".join(f"{mark:{width}}" for mark in marks))
    return [line.rstrip() for line in lines]


def _key_value(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    return key, value


def _mark(state: CellState) -> str:
    return f"{SYMBOLS[state.state]} {state.state}"


def _details(states: Sequence[CellState]) -> list[str]:
    told = [state for state in states if state.detail and state.state != "done"]
    width = max((len(state.label) for state in told), default=0)
    lines = [f"{state.label:{width}}  {state.state}: {state.detail}" for state in told]
    return ["", *lines] if lines else []


def _beside(runs: Sequence[RunView]) -> list[str]:
    """Name the runs that no cell of the last sweep is: SFT starts, single runs, earlier sweeps."""
    if not runs:
        return []
    counts = Counter("done" if run.status == "finished" else run.status for run in runs)
    lines = [
        "",
        "beside the last sweep: " + ", ".join(f"{number} {state}" for state, number in counts.items()),
    ]
    return lines + [f"  {run.name}  {run_progress(run)}" for run in runs if run.status == "running"]


def _next(roster: Roster, states: Sequence[CellState], experiment: str) -> str:
    left = [state for state in states if state.state != "done"]
    if roster.command and roster.alive:
        return f"\nthe sweep is running (process {roster.pid})"
    if any(state.state == "broken" for state in left):
        return "\nnext: move the broken records away (their errors say why), then run the sweep again"
    if left and roster.command:
        return f"\nnext (finished cells are skipped): {roster.command}"
    if left:
        return "\nnext: run the same commands again; interrupted runs continue"
    return f"\nnothing is left to run; next: make results EXPERIMENT={experiment}"
