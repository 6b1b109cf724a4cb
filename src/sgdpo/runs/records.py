"""The run record: open, append, finish, and find by settings.

A run is a folder `outputs/<experiment>/<run>/`. `metrics.jsonl` is the primary record, one line a row and
line-buffered, so that a killed run keeps what it measured. `record.json` is rewritten whole, beside and
renamed, so that no reader ever meets half a record. Neither holds a host name, or a path but those that the
user gave. Only one process of a run (rank 0) opens its record.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from sgdpo.runs.provenance import git_state, peak_memory_mb, process_is_gone, this_process, versions
from sgdpo.store import cut_jsonl, line, read_jsonl, write_json

FORMAT = 1
RECORD, METRICS = "record.json", "metrics.jsonl"


class Record:
    """Hold one open run record. Use `Record.open`."""

    def __init__(self, folder: Path, fields: dict[str, Any]):
        self.folder = folder
        self.fields = fields
        self._seconds_before = fields["seconds"]
        self._opened = time.monotonic()
        self._append()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        name: str,
        experiment: str,
        settings: Mapping[str, Any],
        settings_hash: str,
        result_hash: str,
        phase: str,
        resume: bool,
    ) -> Record:
        """Open the record of a run; `resume` keeps the rows and the seconds of an earlier attempt.

        Raises ValueError if the folder holds a run with other settings, a record of another format version,
        or a run that a living process is training.
        """
        folder = Path(folder)
        before = _earlier(folder, settings, settings_hash)
        folder.mkdir(parents=True, exist_ok=True)
        kept = before if resume and before else {}
        fields = {
            "format": FORMAT,
            "name": name,
            "experiment": experiment,
            "status": "running",
            "phase": phase,
            **headline(settings),
            "settings_hash": settings_hash,
            "result_hash": result_hash,
            "settings": dict(settings),
            "versions": versions(),
            "git": git_state(),
            **this_process(),
            "started": kept.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": kept.get("seconds", 0.0),
            "peak_memory_mb": kept.get("peak_memory_mb", 0.0),
            "data": kept.get("data"),
            "start": kept.get("start"),
            "final": None,
            # An attempt that ended early goes on in the same W&B run, wherever it starts again.
            "tracker": before["tracker"] if before and before["status"] != "finished" else None,
            "error": None,
            "eval": {},
        }
        write_json(folder / RECORD, fields)  # first: no finished record may stand over emptied metrics
        cut_jsonl(folder / METRICS, lambda row: bool(kept))
        return cls(folder, fields)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row {"step", "epoch", "split", metric: number, ...}; NaN and infinities become null."""
        assert {"step", "split"} <= row.keys(), f"not a metrics row: {row}"
        self._metrics.write(line(row))
        self.last[row["split"]] = dict(row)

    def note(self, **fields: Any) -> None:
        """Set fields of record.json and rewrite it, all or nothing."""
        self.fields.update(fields)
        self.fields["seconds"] = round(self._seconds_before + time.monotonic() - self._opened, 3)
        self.fields["peak_memory_mb"] = max(self.fields["peak_memory_mb"], peak_memory_mb())
        write_json(self.folder / RECORD, self.fields)

    def finish(self, **fields: Any) -> None:
        """Close the record as finished, with the last row of each split as the final metrics."""
        self._close(status="finished", **fields)

    def fail(self, error: str) -> None:
        """Close the record as failed, with the reason; the metrics so far stay."""
        self._close(status="failed", error=error)

    def truncate_after(self, step: int) -> None:
        """Drop the rows past `step`, and a torn last line: a resumed run writes them again."""
        self._metrics.close()
        cut_jsonl(self.folder / METRICS, lambda row: row["step"] <= step)
        self._append()

    def _append(self) -> None:
        self.last = {row["split"]: row for row in read_jsonl(self.folder / METRICS, torn_end=True)}
        self._metrics = (self.folder / METRICS).open("a", buffering=1, encoding="utf-8")

    def _close(self, **fields: Any) -> None:
        self._metrics.close()
        self.note(final=self.last or None, **fields)


@dataclass(frozen=True)
class RunView:
    """Hold one run as the sweeps and reports read it.

    status: finished, failed, running, interrupted (says running, but its process is gone) or broken (the
    record cannot be read; `error` says why and `record` is empty).
    """

    folder: Path
    record: Mapping[str, Any]
    status: str
    error: str | None = None

    @property
    def name(self) -> str:
        """Return the run's name, which is its folder's."""
        return self.folder.name

    @property
    def experiment(self) -> str:
        """Return the experiment's name, which is the folder's above."""
        return self.folder.parent.name

    def __getitem__(self, key: str) -> Any:
        """Return a field of record.json, None if it has none."""
        return self.record.get(key)

    def metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl."""
        return read_jsonl(self.folder / METRICS, torn_end=True)


def view_run(folder: Path) -> RunView:
    """Read one run folder; an unreadable record gives status "broken", never an exception."""
    folder = Path(folder)
    try:
        fields = _load(folder)
    except (OSError, ValueError) as error:
        return RunView(folder, {}, "broken", str(error))
    status = fields.get("status", "broken")
    if status == "running" and process_is_gone(fields):
        status = "interrupted"
    return RunView(folder, fields, status, fields.get("error"))


def read_runs(outputs: Path, experiment: str | None = None) -> list[RunView]:
    """Read every run under `outputs` (of one experiment, if named), sorted by experiment and name."""
    return [view_run(path.parent) for path in _record_paths(outputs, experiment)]


def list_experiments(outputs: Path) -> list[str]:
    """Return the names of the experiments that hold at least one run."""
    return sorted({path.parent.parent.name for path in _record_paths(outputs)})


def require_runs(outputs: Path, experiment: str, command: str) -> list[RunView]:
    """Read the runs of an experiment; ValueError if there are none, with `command` that makes them."""
    runs = read_runs(outputs, experiment)
    if runs:
        return runs
    known = ", ".join(list_experiments(outputs)) or "none"
    raise ValueError(
        f"no runs of experiment {experiment!r} under {outputs} (experiments there: {known}). "
        f"Make them: {command}"
    )


def find_run(outputs: Path, experiment: str, settings_hash: str) -> RunView | None:
    """Return the run of the experiment with these settings, whatever its status, or None."""
    return next(_matching(outputs, experiment, "settings_hash", settings_hash), None)


def find_result(outputs: Path, result_hash: str) -> RunView | None:
    """Return a finished run of any experiment that has this result, or None."""
    found = _matching(outputs, None, "result_hash", result_hash)
    return next((run for run in found if run.status == "finished"), None)


def amend_record(folder: Path, **fields: Mapping[str, Any]) -> None:
    """Add to the mapping fields of a closed record (`eval`, `shared`); several may do so at once."""
    folder = Path(folder)
    with FileLock(folder / ".record.lock"):
        record = _load(folder)
        for key, value in fields.items():
            record[key] = {**(record.get(key) or {}), **value}
        write_json(folder / RECORD, record)


def _matching(outputs: Path, experiment: str | None, key: str, wanted: str) -> Iterator[RunView]:
    # Looks for the text before it parses: hundreds of records are searched in some tens of milliseconds.
    for path in _record_paths(outputs, experiment):
        if wanted.encode() in path.read_bytes():
            run = view_run(path.parent)
            if run.record.get(key) == wanted:
                yield run


def _record_paths(outputs: Path, experiment: str | None = None) -> list[Path]:
    return sorted(Path(outputs).glob(f"{experiment or '*'}/*/{RECORD}"))


def _load(folder: Path) -> dict[str, Any]:
    try:
        fields = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / RECORD} is not JSON ({error}); delete {folder}, run it again") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else None
        raise ValueError(
            f"{folder / RECORD} has format {found!r}, this code reads format {FORMAT}. "
            f"Use the code that wrote it, or move {folder} away."
        )
    return fields


def _earlier(folder: Path, settings: Mapping[str, Any], settings_hash: str) -> dict[str, Any] | None:
    """Return the record that is already in the folder, if it may be continued or replaced."""
    if not (folder / RECORD).exists():
        return None
    before = _load(folder)
    if before["settings_hash"] != settings_hash:
        raise ValueError(
            f"{folder} holds a run with other settings ({differences(before['settings'], settings)}). "
            "Move that folder away, or use another experiment=..."
        )
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    if before["status"] == "running" and before["pid"] not in ours and not process_is_gone(before):
        raise ValueError(f"{folder} is being trained by process {before['pid']}. Wait for it, or end it.")
    return before


def differences(before: Mapping[str, Any], after: Mapping[str, Any], limit: int = 4) -> str:
    """Name the settings that differ, as "optimizer.lr is 1e-05 there, 2e-05 here"."""
    old, new = flatten(before), flatten(after)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    named = [f"{key} is {old.get(key)} there, {new.get(key)} here" for key in changed[:limit]]
    more = [f"and {len(changed) - limit} more"] if len(changed) > limit else []
    return "; ".join(named + more) or "only the hash differs"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {"optimizer.lr": value}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def headline(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table groups runs by: method, model, dataset, seed and ratio, out of the settings."""
    keys = {"method": "method", "model": "model", "dataset": "data"}
    names = {key: (settings.get(group) or {}).get("name") for key, group in keys.items()}
    ratio = settings.get("ratio") or {}
    pair = {"chosen": ratio.get("chosen"), "rejected": ratio.get("rejected")}
    return {**names, "seed": settings.get("seed"), "ratio": pair if pair["chosen"] is not None else None}
