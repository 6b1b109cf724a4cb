"""List and prune the cache folder that all runs share; what no run made is neither shown nor touched."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sgdpo.store.files import read_json, read_jsonl
from sgdpo.store.once import lock_of, remove
from sgdpo.store.sealed import MANIFEST, read_seal, what_is_wrong
from sgdpo.store.stretches import ABOUT, Stretches

DAY = 86_400.0
NAMED_BY_HASH = re.compile(r"\.?([^.]*-)?[0-9a-f]{16,64}(\.\w+)?")
# Answers of servers may have cost money: they go only if their kind is named.
PAID = ("served",)


@dataclass(frozen=True)
class Entry:
    """Hold one thing in the cache.

    kind: the folder it lies in. days: since it was written. note: what it is, or why it is broken. broken: half
    written, or damaged; safe to remove.
    """

    kind: str
    path: Path
    size: int
    days: float
    note: str
    broken: bool


def entries(cache: Path, *, check: bool = False) -> list[Entry]:
    """Return everything in the cache, the largest first. check: read the files and compare their hashes.

    Raise ValueError if the folder is no cache.
    """
    if not any((cache / kind).is_dir() for kind in KINDS):
        raise ValueError(
            f"{cache} is no cache folder: it holds none of {', '.join(KINDS)}; give the one that the runs were given"
            " as cache=... (outputs/cache unless set)"
        )
    found = []
    for kind, describe in KINDS.items():
        for path in _ours(cache / kind):
            with suppress(FileNotFoundError):  # a run renamed or removed it meanwhile
                found.append(_entry(kind, path, describe, check))
    return sorted(found, key=lambda entry: -entry.size)


def prune(
    found: list[Entry], *, kind: str | None, older_than: float | None, broken: bool, delete: bool
) -> list[Entry]:
    """Return the entries that match every condition given, and delete them if `delete` says so.

    kind: only of this kind; without one all but those of PAID. older_than: days. broken: only broken ones. What a
    run holds the lock of stays.
    """
    chosen = [
        entry
        for entry in found
        if (entry.kind == kind or (kind is None and entry.kind not in PAID))
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


def _ours(folder: Path) -> list[Path]:
    """Return what runs wrote into a folder of the cache: it is named by a hash, sealed, or a sealed thing's half."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    inside = (
        path for path in folder.iterdir() if path.suffix not in (".lock", ".owner") and not path.is_symlink()
    )
    return [
        path
        for path in inside
        if NAMED_BY_HASH.fullmatch(path.name) or path.name.endswith(".partial") or (path / MANIFEST).is_file()
    ]


def _entry(kind: str, path: Path, describe: Callable[[Path, bool], str], check: bool) -> Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    broken = path.name.startswith(".")
    try:
        note = "half written" if broken else describe(path, check)
    except (ValueError, KeyError, TypeError) as error:
        note, broken = f"damaged: {error}", True
    # What lies on the disk: a table has holes until it is computed.
    size = sum(min(file.stat().st_size, 512 * file.stat().st_blocks) for file in files)
    return Entry(kind, path, size, (time.time() - path.stat().st_mtime) / DAY, note, broken)


def _sealed(folder: Path, check: bool) -> str:
    content = read_seal(folder)
    wrong = what_is_wrong(folder) if check or content is None else None
    if wrong or content is None:
        raise ValueError(wrong)
    return str(content.get("what", ""))


def _table(folder: Path, check: bool) -> str:
    about = read_json(folder / ABOUT, kind=dict)
    table = Stretches(folder, int(about["values"]))
    if check and (wrong := table.damage()):
        raise ValueError(wrong)
    spans = sum(1 for _ in table.spans())
    return f"{spans} examples, weights {about['key'].get('weights')}, {about['key'].get('dtype')}"


def _lines(path: Path, check: bool) -> str:
    return f"{len(read_jsonl(path, torn_end=True))} rows" if check else ""


def _note(path: Path, check: bool) -> str:
    return str(read_json(path, kind=dict).get("path", ""))


# What runs keep in the cache; the functions say what an entry is, or raise for a damaged one. Locks lie there too, and
# are neither shown nor removed.
KINDS: dict[str, Callable[[Path, bool], str]] = {
    "reference": _table,
    "tokens": _sealed,
    "models": _sealed,
    "generations": _lines,
    "served": _lines,
    "hashes": _note,
}


def _delete(entry: Entry) -> bool:
    """Delete an entry unless a run holds its lock; return whether it is gone."""
    place = entry.path.with_name(entry.path.name.removeprefix(".").removesuffix(".partial"))
    try:
        with FileLock(lock_of(place)).acquire(timeout=0):
            remove(entry.path)
    except Timeout:
        return False
    return True
