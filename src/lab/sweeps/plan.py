"""The sweep's own record: outputs/<experiment>/sweep.json, the list of its cells.

The run records say how a cell went; the plan says which cells there are, so that missing ones are known, and
why a cell ended that could not close its record. Only the sweep's process writes it, whole and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.sweeps.cells import Cell, label_cells
from lab.sweeps.errors import SweepError
from sgdpo.runs.provenance import process_is_gone, this_process
from sgdpo.store import write_json

FORMAT = 1
PLAN = "sweep.json"


@dataclass
class Plan:
    """Hold the cells of an experiment's last sweep.

    cells: {name: {"label", "overrides", "settings_hash", "start", "error"}}, in the sweep's order;
    `error` is why the last attempt of the cell ended, null if it did not fail.
    """

    folder: Path
    command: str
    n_jobs: int
    cells: dict[str, dict[str, Any]]
    process: Mapping[str, Any] = field(default_factory=this_process)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self) -> None:
        """Write sweep.json, all or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / PLAN, {"format": FORMAT, **{k: v for k, v in vars(self).items() if k != "folder"}}
        )

    def note(self, name: str, error: str | None) -> None:
        """Keep why a cell ended, or that it runs again (None)."""
        if name in self.cells and self.cells[name]["error"] != error:
            self.cells[name]["error"] = error
            self.write()

    @property
    def alive(self) -> bool:
        """Say whether the process that runs this sweep still lives."""
        return not process_is_gone(self.process)


def open_plan(cells: Sequence[Cell], command: str) -> Plan:
    """Write the plan of a sweep that starts. Raises SweepError if another one works on the experiment."""
    folder, before = cells[0].folder.parent, read_plan(cells[0].folder.parent)
    if before is not None and before.alive and before.process["pid"] != this_process()["pid"]:
        raise SweepError(
            f"error: process {before.process['pid']} runs a sweep of experiment {folder.name!r} already "
            f"({before.command}). Wait for it or end it, or use another experiment=..."
        )
    labels = label_cells([cell.overrides for cell in cells])
    entries = {
        cell.name: {
            "label": label,
            "overrides": list(cell.overrides),
            "settings_hash": cell.identity.settings_hash,
            "start": cell.start.name if cell.start else None,
            "error": before.cells.get(cell.name, {}).get("error") if before else None,
        }
        for cell, label in zip(cells, labels, strict=True)
    }
    plan = Plan(folder, command, cells[0].run.n_jobs, entries)
    plan.write()
    return plan


def read_plan(folder: Path) -> Plan | None:
    """Read an experiment's last sweep, None if it had none. Raises SweepError for another version."""
    path = Path(folder) / PLAN
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("format")
        if version == FORMAT:
            return Plan(Path(folder), **fields)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(
            f"error: {path} is not a sweep's plan ({error!r}); delete it and start the sweep again"
        ) from None
    raise SweepError(
        f"error: {path} has format {version!r}, this code reads format {FORMAT}; move {folder} away, "
        "or use the code that wrote it"
    )
