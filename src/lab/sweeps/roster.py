"""The sweep's own record: outputs/<experiment>/sweep.json, the roster of its cells.

The run records say how a cell went; the roster says which cells there are, so that missing ones are known, and
why a cell ended that could not close its record. Only the sweep's process writes it, whole and renamed; that
process holds a lock as long as it lives, and touches the roster, so that a reader elsewhere can tell.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.sweeps.cells import Cell, SweepError, label_cells
from sgdpo.store import Lock, read_json, write_json

FORMAT = 2
ROSTER = "sweep.json"
BEAT_SECONDS = 5.0
# A sweep that has not touched its roster for so long is gone, wherever it ran.
SILENT_SECONDS = 30.0


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
        """Write sweep.json, all or nothing."""
        fields = {key: value for key, value in vars(self).items() if key not in ("folder", "_beaten")}
        write_json(self.folder / ROSTER, {"format": FORMAT, **fields})

    def note(self, name: str, error: str | None) -> None:
        """Keep why a cell ended, or that it runs again (None)."""
        if name in self.cells and self.cells[name]["error"] != error:
            self.cells[name]["error"] = error
            self.write()

    def beat(self) -> None:
        """Say that the sweep lives."""
        if time.monotonic() - self._beaten > BEAT_SECONDS:
            self._beaten = time.monotonic()
            os.utime(self.folder / ROSTER)

    @property
    def alive(self) -> bool:
        """Say whether the sweep goes on: it has not ended, and its last sign of life is fresh."""
        if self.pid is None:
            return False
        return abs(time.time() - (self.folder / ROSTER).stat().st_mtime) < SILENT_SECONDS


@contextlib.contextmanager
def open_roster(cells: Sequence[Cell], command: str) -> Iterator[Roster]:
    """Hold the roster of a sweep while it runs. Raises SweepError if another one works on the experiment."""
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
    entries = {
        cell.name: {
            "label": label,
            "overrides": list(cell.overrides),
            "error": before.cells.get(cell.name, {}).get("error") if before else None,
        }
        for cell, label in zip(cells, label_cells([cell.overrides for cell in cells]), strict=True)
    }
    roster = Roster(folder, command, entries, before.jobs if before else [])
    try:
        roster.write()
        yield roster
    finally:
        roster.pid = None
        with contextlib.suppress(OSError):  # a full disk: its silence tells the same
            roster.write()
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
