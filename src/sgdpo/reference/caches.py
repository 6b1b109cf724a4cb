"""List and prune the cache folder that all runs share: reference log-probs, tokenised sets, models, the rest."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sgdpo.reference.store import TornTableError, open_table

DAY = 86_400.0


@dataclass(frozen=True)
class Entry:
    """Hold one thing in the cache.

    kind: the folder it lies in (`reference`, `tokens`, `models`, ...). days: since it was written. note: what it
    is, or why it is broken. broken: half written, or damaged; safe to remove.
    """

    kind: str
    path: Path
    size: int
    days: float
    note: str
    broken: bool


def entries(cache: Path, *, check: bool = False) -> list[Entry]:
    """Return everything in the cache, the largest first. check: read the files and compare checksums."""
    found = []
    for kind in sorted(path for path in cache.glob("*") if path.is_dir()):
        for path in kind.iterdir():
            if path.suffix != ".lock":
                with contextlib.suppress(FileNotFoundError):  # a run renamed or removed it meanwhile
                    found.append(_entry(kind.name, path, check))
    return sorted(found, key=lambda entry: -entry.size)


def prune(
    found: list[Entry], *, kind: str | None, older_than: float | None, broken: bool, delete: bool
) -> list[Entry]:
    """Return the entries that match every condition given, and delete them if `delete` says so.

    kind: only of this kind. older_than: days. broken: only broken ones. What a run holds the lock of stays.
    """
    chosen = [
        entry
        for entry in found
        if (kind is None or entry.kind == kind)
        and (older_than is None or entry.days > older_than)
        and (entry.broken or not broken)
    ]
    return [entry for entry in chosen if not delete or _delete(entry)]


def listing(found: list[Entry]) -> str:
    """Return the entries as lines: kind, size, age, name, note; and their total."""
    lines = [
        f"{entry.kind:<12} {entry.size / 2**20:>9,.1f} MB  {entry.days:>6.1f} days  {entry.path.name}  {entry.note}"
        for entry in found
    ]
    total = sum(entry.size for entry in found) / 2**20
    return "\n".join([*lines, f"{len(found)} entries, {total:,.1f} MB"])


def _entry(kind: str, path: Path, check: bool) -> Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    partial = path.name.startswith(".") or path.name.endswith(".partial")
    note, broken = ("half written", True) if partial else ("", False)
    if kind == "reference" and not partial:
        note, broken = _describe_table(path, check)
    size = sum(file.stat().st_size for file in files)
    return Entry(kind, path, size, (time.time() - path.stat().st_mtime) / DAY, note, broken)


def _describe_table(folder: Path, check: bool) -> tuple[str, bool]:
    try:
        head = json.loads((folder / "table.json").read_text())
        if check:
            open_table(folder, head["key"])
        return (
            f"{head['rows']} examples, weights {head['key'].get('weights')}, {head['key'].get('dtype')}",
            False,
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, TornTableError) as error:
        return f"damaged: {error}", True


def _delete(entry: Entry) -> bool:
    """Delete an entry unless a run holds its lock; return whether it is gone."""
    name = entry.path.name.removeprefix(".").removesuffix(".partial")
    lock = FileLock(entry.path.with_name(f"{name}.lock"))
    try:
        with lock.acquire(timeout=0):
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink()
    except Timeout:
        return False
    return True
