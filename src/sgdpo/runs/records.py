"""The run record: what an attempt writes, and how runs are read and found again.

A run is a folder `outputs/<experiment>/<run>/`. `metrics.jsonl` is the primary record, one line a row and handed to the
system at once, so that a killed run keeps what it measured; a checkpoint's manifest holds its length and hash.
`record.json` is rewritten whole, beside and renamed. Neither holds a host name, or a path but those that the user gave.

A *training* goes from the first step to the last; an *attempt* is one process's part of it. An attempt that continues a
checkpoint keeps its training; one that starts again begins another, whose first row replaces what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from sgdpo.config.identity import Identity
from sgdpo.runs.provenance import (
    Heartbeat,
    git_state,
    made_by,
    peak_memory_mb,
    process_is_gone,
    this_process,
    wait_until_judged,
)
from sgdpo.store import (
    DamagedError,
    JsonLines,
    cut_jsonl,
    hash_buffers,
    held,
    read_json,
    read_jsonl,
    remove,
    write_json,
    write_whole,
)

FORMAT = 1
SPARE_BYTES = 2**15  # given back at the end, so that a full disk has room for the record's last words
ADVICE = "force=true trains the run again in its place"
RECORD, METRICS, SAMPLES, LOG, HEARTBEAT, SPARE, CHECKPOINTS, MODEL = (
    "record.json", "metrics.jsonl", "samples.jsonl", "log.txt", ".heartbeat", ".spare", "checkpoints", "model",
)  # fmt: skip


class Record:
    """Write one attempt at a run. Use `Record.open`."""

    def __init__(self, folder: Path, before: Mapping[str, Any], fields: dict[str, Any], rows: int | None):
        self.folder, self.fields = folder, fields
        self._before, self._rows, self._begun = before, rows, False
        self.last: dict[str, Any] = {}
        self._heartbeat = Heartbeat(folder / HEARTBEAT)
        if rows is not None or not (before.get("status") == "finished" or (folder / CHECKPOINTS).is_dir()):
            self._begin()

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        *,
        phase: str,
        checkpoint: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> Record:
        """Open the record of a run for a new attempt.

        checkpoint: the manifest of the one it continues; its rows are kept. None starts again: what an earlier
        attempt left is replaced once this one has a row. force: replace even a record that cannot be read. Raise
        ValueError for a damaged one, one of other settings or format, or a run that a living process trains.
        """
        before = _earlier(Path(folder), identity, force)
        folder.mkdir(parents=True, exist_ok=True)
        for left in [*folder.glob(f".{RECORD}.*"), *folder.glob(f".{METRICS}.*")]:  # by a killed write_whole
            left.unlink(missing_ok=True)
        began = datetime.now(UTC).isoformat(timespec="seconds")
        attempt = {"id": uuid4().hex[:12], "started": began, "seconds": 0.0, **made_by(), **this_process()}
        attempt |= {"from_step": checkpoint["step"] if checkpoint else 0}
        kept = before if checkpoint else {}
        fields = {
            "format": FORMAT,
            "name": identity.name,
            "experiment": folder.parent.name,
            "status": "running",
            "phase": phase,
            **headline(identity.settings),
            "settings_hash": identity.settings_hash,
            "run_hash": identity.run_hash,
            "result_hash": identity.result_hash,
            "settings": identity.settings,
            "contents": identity.contents,
            "training": checkpoint["training"] if checkpoint else attempt["id"],
            "versions": attempt["versions"],
            "git": git_state(),
            **this_process(),
            "started": kept.get("started") or attempt["started"],
            "attempts": [*_ended_attempts(folder, before), attempt],
            "peak_memory_mb": kept.get("peak_memory_mb", 0.0),
            "data": kept.get("data"),
            "start": kept.get("start"),
            "final": None,
            # An attempt that ended early goes on in the same W&B run, wherever it starts again.
            "tracker": before.get("tracker") if before.get("status") != "finished" else None,
            "error": None,
            "eval": {},
        }
        fields["seconds"] = round(sum(each["seconds"] for each in fields["attempts"]), 3)
        return cls(folder, before, fields, checkpoint["metrics"]["bytes"] if checkpoint else None)

    def kept(self, file: str) -> list[dict[str, Any]]:
        """Read a file's rows of the training that this attempt continues; none if it starts again."""
        return read_jsonl(self.folder / file, torn_end=True) if self._begun else []

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row {"step", "epoch", "split", metric: number, ...}; NaN and infinities become null."""
        assert {"step", "split"} <= row.keys(), f"not a metrics row: {row}"
        self._begin()
        self._metrics.append(row)
        self.last[row["split"]] = dict(row)

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Append answers {"step", "number", "prompt", "response", ...}, durably; return all of this training."""
        self._begin()
        with JsonLines(self.folder / SAMPLES) as file:
            file.append(*rows, durable=True)
        return read_jsonl(self.folder / SAMPLES)

    def mark(self) -> dict[str, Any]:
        """Put the rows on the disk; return what a checkpoint's manifest keeps to know its rows and its training."""
        self._begin()
        rows = {"bytes": self._metrics.sync(), "sha256": _digest(self.folder / METRICS)}
        return {"training": self.fields["training"], "metrics": rows, "made_by": made_by()}

    def seconds(self) -> float:
        """Return what all attempts have worked until now."""
        attempts = self.fields["attempts"]
        attempts[-1]["seconds"] = self._heartbeat.seconds
        return round(sum(each["seconds"] for each in attempts), 3)

    def note(self, **fields: Any) -> None:
        """Set fields of record.json and rewrite it, all or nothing."""
        self.fields.update(fields)
        self.fields["seconds"] = self.seconds()
        self.fields["peak_memory_mb"] = max(self.fields["peak_memory_mb"], peak_memory_mb())
        if self._begun:
            write_json(self.folder / RECORD, self.fields)

    def finish(self, best: Mapping[str, Any] | None = None, **fields: Any) -> None:
        """Close the record as finished, with the last row of each split as the final metrics.

        best: what says which step's weights the run ended with, if not the last one's; final are its rows then.
        """
        self._begin()
        self.last = self.final(best)
        self._close(status="finished", best=best, **fields)

    def final(self, best: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the last row of each split that the weights have seen, those of the best step or of the last one."""
        if best is None:
            return self.last
        rows = read_jsonl(self.folder / METRICS)
        return {row["split"]: row for row in rows if row["step"] <= best["step"]}

    def fail(self, error: str) -> None:
        """Close the record as failed; the metrics stay, and so does a finished record that nothing has replaced."""
        if not self._begun and self._before.get("status") != "finished":
            kept = {**self._before, "attempts": self.fields["attempts"], "tracker": self.fields["tracker"]}
            self.fields, self._begun = kept, True
            self.last = kept.get("final") or {}
            self._metrics = JsonLines(self.folder / METRICS)
        self._close(status="failed", error=error)

    def leave(self) -> None:
        """End the sign of life; a record that was not closed says from then on that the run was interrupted."""
        self._heartbeat.stop()

    def _begin(self) -> None:
        """Replace what an earlier attempt left, or cut its rows to those that the checkpoint knows."""
        if self._begun:
            return
        self._begun = True
        # First the record: no finished one may stand over emptied metrics, no other training over its checkpoints.
        write_json(self.folder / RECORD, self.fields)
        if self._rows is None:
            for folder in (CHECKPOINTS, MODEL):
                remove(self.folder / folder)  # a link, of a run that trains nothing, as one
            (self.folder / SAMPLES).unlink(missing_ok=True)
            write_whole(self.folder / METRICS, "")
        else:
            os.truncate(self.folder / METRICS, self._rows)
            step = self.fields["attempts"][-1]["from_step"]
            cut_jsonl(self.folder / SAMPLES, lambda row: row["step"] <= step)
        self.last = {row["split"]: row for row in read_jsonl(self.folder / METRICS)}
        self._metrics = JsonLines(self.folder / METRICS)
        (self.folder / SPARE).write_bytes(os.urandom(SPARE_BYTES))  # what a file system cannot make smaller

    def _close(self, **fields: Any) -> None:
        (self.folder / SPARE).unlink(missing_ok=True)
        if self._begun:
            self._metrics.close()
        self.note(final=self.last or None, **fields)
        self.leave()


def why_foreign(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Return why a checkpoint cannot go on with a run's record and metrics, None if it can."""
    record = read_json(folder / RECORD, default={}, kind=dict, advice=ADVICE)
    if record and record.get("training") != manifest.get("training"):
        return "it is of a training that was started again since"
    rows = manifest.get("metrics") or {}
    with suppress(OSError, KeyError):
        if _digest(folder / METRICS, rows["bytes"]) == rows["sha256"]:
            return None
    return f"{folder / METRICS} does not hold the rows that were saved with it"


@dataclass(frozen=True)
class RunView:
    """Hold one run as the sweeps and reports read it.

    status: finished, failed, running, interrupted (its process is gone) or broken (`error` says why, no `record`).
    """

    folder: Path
    record: Mapping[str, Any]
    status: str
    error: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def experiment(self) -> str:
        return self.folder.parent.name

    @property
    def steps_taken(self) -> int:
        """Return after how many steps its training ended: all, or those until it stopped early."""
        return (self["best"] or {}).get("stopped_early", self["steps"])

    def __getitem__(self, key: str) -> Any:
        """Return a field of record.json, None if it has none."""
        return self.record.get(key)

    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / METRICS, torn_end=True, advice=ADVICE)


def view_run(folder: Path) -> RunView:
    """Read one run folder; an unreadable record gives status "broken", never an exception."""
    folder = Path(folder)
    try:
        fields = _load(folder)
    except ValueError as error:
        return RunView(folder, {}, "broken", str(error))
    status = fields.get("status", "broken")
    if status == "running" and process_is_gone(fields, folder / HEARTBEAT):
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


def find_runs(outputs: Path, experiment: str | None, names: str, key: str, value: str) -> list[RunView]:
    """Return the runs whose folder name fits the pattern `names` and whose record has this value; the finished first.

    Only such folders' records are read, and parsed only where the value stands in the text.
    """
    found = []
    for path in _record_paths(outputs, experiment, names):
        with suppress(FileNotFoundError):  # another process lets it go on under another name
            if value.encode() in path.read_bytes():
                found.append(view_run(path.parent))
    return sorted((run for run in found if run[key] == value), key=lambda run: run.status != "finished")


def amend_record(folder: Path, **fields: Mapping[str, Any]) -> None:
    """Add to the mapping fields of a closed record (`eval`, `shared`); several may do so at once."""
    with held(folder / ".record", "the record"):
        record = _load(folder)
        for key, value in fields.items():
            record[key] = {**(record.get(key) or {}), **value}
        write_json(folder / RECORD, record)


def _record_paths(outputs: Path, experiment: str | None = None, names: str = "*") -> list[Path]:
    if experiment and Path(experiment).name != experiment:
        raise ValueError(f"an experiment is named like a folder, without a path: not {experiment!r}")
    return sorted(Path(outputs).glob(f"{experiment or '*'}/{names}/{RECORD}"))


def _load(folder: Path) -> dict[str, Any]:
    fields = read_json(folder / RECORD, default=None, kind=dict, advice=ADVICE)
    if fields is None:
        raise ValueError(f"{folder} is not a run: it holds no {RECORD}; give outputs/<experiment>/<run>")
    if fields.get("format") != FORMAT:
        raise ValueError(
            f"{folder / RECORD} has format {fields.get('format')!r}, this code reads format {FORMAT}. "
            f"Use the code that wrote it, or move {folder} away."
        )
    return fields


def _earlier(folder: Path, identity: Identity, force: bool) -> dict[str, Any]:
    """Return the record that is already in the folder, if it may be continued or replaced; {} if there is none."""
    try:
        before = _load(folder) if (folder / RECORD).exists() else {}
    except DamagedError:
        if not force:
            raise
        before = {}
    if before and before.get("run_hash") != identity.run_hash:
        raise ValueError(
            f"{folder} holds a run with other settings ({differences(before['settings'], identity.settings)}). "
            "Move that folder away, or use another experiment=..."
        )
    if before.get("status") == "running" and not wait_until_judged(before, folder / HEARTBEAT):
        raise ValueError(f"{folder} is being trained by process {before['pid']}. Wait for it, or end it.")
    return before


def _ended_attempts(folder: Path, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the earlier attempts at what is not finished yet; a killed one worked until its last sign of life."""
    attempts = list(before.get("attempts") or []) if before.get("status") != "finished" else []
    with suppress(OSError, ValueError, IndexError):
        last = max(float((folder / HEARTBEAT).read_text()), attempts[-1]["seconds"])
        attempts[-1] = {**attempts[-1], "seconds": last}
    return attempts


def _digest(path: Path, size: int = -1) -> str:
    """Hash the first `size` bytes of a file, all by default. Raise KeyError if it has fewer."""
    content = path.read_bytes()
    if len(content) < size:
        raise KeyError(size)
    return hash_buffers([content[:size] if size >= 0 else content], 64)


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
