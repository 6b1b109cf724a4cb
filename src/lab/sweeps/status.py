"""How the cells of an experiment stand: the sweep's own record of them, and the page made of it and of the run records.

outputs/<experiment>/sweep.json is the roster. The run records say how a cell went; the roster says which cells there
are, so that missing ones are known, and why a cell ended that could not close its record. Only the sweep's process
writes it, whole and renamed; that process holds a lock as long as it lives, and touches the roster, so that a reader
elsewhere can tell.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.sweeps.cells import Cell, SweepError, label_cells
from lab.sweeps.screen import run_progress
from sgdpo.runs.records import RunView, list_experiments, read_runs
from sgdpo.store import Lock, age, read_json, write_json

FORMAT = 2
ROSTER = "sweep.json"
BEAT_SECONDS = 5.0
# A sweep that has not touched its roster for so long is gone, wherever it ran.
SILENT_SECONDS = 30.0
NEXT_KEY = re.compile(r" (?=[+\w./@]+=)")  # between two overrides of a label, whose values may hold spaces


@dataclass
class Roster:
    """Hold the cells of an experiment's last sweep.

    cells: {name: {"label", "overrides", "error"}}, in the sweep's order;
    `error` is why the last attempt of the cell ended, null if it did not fail. jobs: what it has in a queue.
    pid: of the process that runs it, null once it has ended.
    """

    folder: Path
    command: str
    cells: dict[str, dict[str, Any]]
    jobs: list[str] = field(default_factory=list)
    pid: int | None = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _beaten: float = 0.0

    def write(self) -> None:
        fields = {key: value for key, value in vars(self).items() if key not in ("folder", "_beaten")}
        write_json(self.folder / ROSTER, {"format": FORMAT, **fields})

    def note(self, name: str, error: str | None) -> None:
        """Keep why a cell ended, or that it runs again (None), for whoever reads while the sweep runs."""
        if name in self.cells and self.cells[name]["error"] != error:
            self.cells[name]["error"] = error
            self.write()

    def tick(self) -> None:
        """Say that the sweep lives."""
        if time.monotonic() - self._beaten > BEAT_SECONDS:
            self._beaten = time.monotonic()
            os.utime(self.folder / ROSTER)

    @property
    def alive(self) -> bool:
        """Say whether the sweep goes on: it has not ended, and its last sign of life is fresh."""
        return self.pid is not None and age(self.folder / ROSTER) < SILENT_SECONDS


@contextlib.contextmanager
def open_roster(cells: Sequence[Cell], command: str) -> Iterator[Roster]:
    """Hold the roster of a sweep while it runs.

    Raises SweepError if another one works on the experiment, SystemExit(130) after Ctrl-C.
    """
    folder = cells[0].folder.parent
    lock = Lock(folder / ".sweep", "the sweep")  # the operating system's: it ends with its owner
    if not lock.try_for(0.0):
        other = read_roster(folder)
        who = f"process {other.pid}: {other.command}" if other else "it begins just now"
        raise SweepError(
            f"another sweep of experiment {folder.name!r} is running already ({who}). "
            "Wait for it or end it, or use another experiment=..."
        )
    before = read_roster(folder)
    entries = {}
    for cell, label in zip(cells, label_cells([cell.overrides for cell in cells]), strict=True):
        error = before.cells.get(cell.name, {}).get("error") if before else None
        entries[cell.name] = {"label": label, "overrides": list(cell.overrides), "error": error}
    roster = Roster(folder, command, entries, before.jobs if before else [])
    try:
        roster.write()
        yield roster
    except KeyboardInterrupt:
        print(f"\nstopped; nothing runs any more. The same command continues: {command}", flush=True)
        raise SystemExit(130) from None
    finally:
        with contextlib.suppress(OSError, SweepError):  # a full disk: its silence tells the same
            last = read_roster(folder) or roster  # a launcher has noted there how cells ended
            last.pid = None
            last.write()
        lock.release()


def read_roster(folder: Path) -> Roster | None:
    """Read an experiment's last sweep, None if it had none. Raises SweepError for another version."""
    path = Path(folder) / ROSTER
    advice = "delete it and start the sweep again"
    try:
        fields = read_json(path, default=None, kind=dict, advice=advice)
        if fields is None:
            return None
        version = fields.pop("format", None)
        if version == FORMAT:
            return Roster(Path(folder), **fields)
    except (ValueError, TypeError) as error:
        raise SweepError(f"{path} is not a sweep's roster ({error}); {advice}") from None
    raise SweepError(
        f"{path} has format {version!r}, this code reads format {FORMAT}; move {folder} away, "
        "or use the code that wrote it"
    )


STATES = ("done", "running", "pruned", "failed", "interrupted", "missing", "broken")
SYMBOLS = dict(zip(STATES, "✓▶✂✗◌–!", strict=True))


@dataclass(frozen=True)
class CellState:
    """Hold how one cell stands: one of STATES, and a detail (a step, the last line of an error)."""

    label: str
    state: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{SYMBOLS[self.state]} {self.state}"


def _state(entry: Mapping[str, Any], run: RunView | None) -> CellState:
    label, why = entry["label"], last_line(entry["error"])
    if run is None:
        return CellState(label, "failed" if why else "missing", why)
    if run.status == "finished":
        return CellState(label, "done")
    if run.status == "running":
        return CellState(label, "running", run_progress(run))
    if run.status == "interrupted":
        return CellState(label, "failed" if why else "interrupted", why or f"at {run_progress(run)}")
    return CellState(label, run.status, last_line(run.error) or why)


def last_line(text: str | None) -> str:
    """Return the last line of an error that says something: the exception's own."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _standing(outputs: Path, experiment: str) -> tuple[Roster, list[CellState], list[RunView]]:
    """Return an experiment's roster, its cells, and the runs that are none of them.

    An experiment that had no sweep has its runs as cells, as they are.
    """
    folder, runs = Path(outputs) / experiment, {run.name: run for run in read_runs(outputs, experiment)}
    plain = {name: {"label": name, "error": None} for name in runs}
    roster = read_roster(folder) or Roster(folder, "", plain, pid=None)
    states = [_state(entry, runs.get(name)) for name, entry in roster.cells.items()]
    return roster, states, [run for name, run in runs.items() if name not in roster.cells]


def _experiments(outputs: Path) -> list[str]:
    rostered = {path.parent.name for path in Path(outputs).glob(f"*/{ROSTER}")}
    return sorted({*list_experiments(outputs), *rostered})


def experiment_status(outputs: Path, experiment: str) -> str:
    """Return the status page of one experiment. Raises SweepError if there is no such experiment."""
    roster, states, beside = _standing(outputs, experiment)
    if not states and not beside:
        known = ", ".join(_experiments(outputs)) or "none yet; python src/train.py sweep=ratio_grid makes one"
        raise SweepError(f"no experiment {experiment!r} under {outputs}. There are: {known}")
    parts = [f"{experiment}: {_totals(states)}", *render_grid(states), *_details(states), *_beside(beside)]
    return "\n".join([*parts, _next(roster, states, experiment)])


def overview(outputs: Path) -> str:
    """Return one line for every experiment. Raises SweepError if there is none."""
    experiments = _experiments(outputs)
    if not experiments:
        raise SweepError(f"no records under {outputs} yet. Make some: python src/train.py sweep=ratio_grid")
    width, lines = max(map(len, experiments)), []
    for experiment in experiments:
        roster, states, _ = _standing(outputs, experiment)
        lines.append(f"{experiment:{width}}  {_totals(states)}{'  (sweep running)' if roster.alive else ''}")
    return "\n".join([*lines, "one of them: make status EXPERIMENT=..."])


def _totals(states: Sequence[CellState]) -> str:
    counts = Counter(state.state for state in states)
    return f"{len(states)} cells: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])


def render_grid(states: Sequence[CellState]) -> list[str]:
    """Draw the cells: tables over the two widest axes, a list of the cells that are on none."""
    cells = [
        (dict(part.split("=", 1) for part in NEXT_KEY.split(state.label) if "=" in part), state)
        for state in states
    ]
    values: dict[str, set[str]] = {}
    for axes, _ in cells:
        for key, value in axes.items():
            values.setdefault(key, set()).add(value)
    wide = sorted((key for key in values if len(values[key]) > 1), key=lambda key: -len(values[key]))[:2]
    blocks: dict[str | None, list[tuple[dict[str, str], CellState]]] = {}
    for axes, state in cells:
        on_both = len(wide) == 2 and all(key in axes for key in wide)
        others = " ".join(f"{key}={value}" for key, value in axes.items() if key not in wide)
        blocks.setdefault(others if on_both else None, []).append((axes, state))
    lines = []
    for others, block in blocks.items():
        if others is None:
            width = max(len(state.label) for _, state in block)
            lines += ["", *(f"{state.label:{width}}  {state}" for _, state in block)]
        else:
            lines += ["", *_table(others, *sorted(wide, key=list(values).index), block)]
    return lines


def _table(
    title: str, rows: str, columns: str, block: Sequence[tuple[dict[str, str], CellState]]
) -> list[str]:
    marks = {(axes[rows], axes[columns]): str(state) for axes, state in block}
    row_names, column_names = (list(dict.fromkeys(pair[i] for pair in marks)) for i in (0, 1))
    first = max(len(rows) + 1 + max(map(len, row_names)), len(title))
    width = max(len(text) for text in [*marks.values(), *(f"{columns}={name}" for name in column_names)])
    lines = [[f"{title:{first}}", *(f"{f'{columns}={name}':{width}}" for name in column_names)]]
    for row in row_names:
        shown = (f"{marks.get((row, column), ''):{width}}" for column in column_names)
        lines.append([f"{f'{rows}={row}':{first}}", *shown])
    return ["  ".join(line).rstrip() for line in lines]


def _details(states: Sequence[CellState]) -> list[str]:
    told = [state for state in states if state.detail]
    width = max((len(state.label) for state in told), default=0)
    lines = [f"{state.label:{width}}  {state.state}: {state.detail}" for state in told]
    return ["", *lines] if lines else []


def _beside(runs: Sequence[RunView]) -> list[str]:
    """Name the runs that no cell of the last sweep is: SFT starts, single runs, earlier sweeps."""
    if not runs:
        return []
    counts = Counter("done" if run.status == "finished" else run.status for run in runs)
    total = ", ".join(f"{number} {state}" for state, number in counts.items())
    running = [f"  {run.name}  {run_progress(run)}" for run in runs if run.status == "running"]
    return ["", f"beside the last sweep: {total}", *running]


def what_again(command: str) -> str:
    """Say what the same command does with cells that are finished."""
    return (
        "force=true: finished cells too"
        if "force=true" in command.lower().split()
        else "finished cells are skipped"
    )


def _next(roster: Roster, states: Sequence[CellState], experiment: str) -> str:
    left = [state for state in states if state.state not in ("done", "pruned")]
    if roster.alive:
        return f"\nthe sweep is running (process {roster.pid})"
    if any(state.state == "broken" for state in left):
        return "\nnext: move the broken records away (their errors say why), then run the sweep again"
    if left and roster.command:
        return f"\nnext ({what_again(roster.command)}): {roster.command}"
    if left:
        return "\nnext: run the same commands again; interrupted runs continue"
    return f"\nnothing is left to run; next: make results EXPERIMENT={experiment}"
