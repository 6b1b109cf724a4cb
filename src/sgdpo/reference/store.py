"""The file form of the reference cache: ragged float32 values in memory-mapped files, with checksums.

A table is a folder `<cache>/reference/<hash of its key>/`:
    values.f32    float32, for each example the chosen completion's log-probs, then the rejected one's
    ids.i64       example ids, ascending
    lengths.i64   (n, 2) tokens of the chosen and of the rejected completion
    table.json    format, key (what the values depend on, and nothing else), counts, checksums
It is written beside and renamed, so that a folder of this name is whole, or was damaged later.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgdpo.store import write_json

FORMAT = 1
FILES = ("values.f32", "ids.i64", "lengths.i64")


class TornTableError(Exception):
    """Say that a table's files do not match their checksums; whoever opens it builds it again."""


def key_hash(key: dict[str, Any]) -> str:
    """Return the folder name of a key: a hash of its sorted JSON, 16 hex digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """Hold the open table of one data set; the values stay on disk."""

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    values: np.ndarray

    def find(self, example_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the log-probs of both sides, float32, or None if the example is not in this set."""
        row = int(np.searchsorted(self.ids, example_id))
        if row == len(self.ids) or self.ids[row] != example_id:
            return None
        start, (chosen, rejected) = int(self.starts[row]), self.lengths[row].tolist()
        both = self.values[start : start + chosen + rejected]
        return both[:chosen], both[chosen:]


class ReferenceTable:
    """Hold the reference log-probs of one or several data sets.

    forward_tokens: tokens that this process (with its fellow ranks) ran through the reference model to get
    them; 0 if all of them were found.
    """

    def __init__(self, parts: Sequence[Part], forward_tokens: int = 0) -> None:
        self._parts, self.forward_tokens = list(parts), forward_tokens

    def __len__(self) -> int:
        return sum(len(part.ids) for part in self._parts)

    def lookup(self, example_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probs of the chosen and of the rejected completion, float32, nats.

        Raise ValueError for an example that the table does not hold.
        """
        for part in self._parts:
            found = part.find(example_id)
            if found is not None:
                return found
        raise ValueError(
            f"example {example_id} is not in the reference cache, which holds {len(self)} examples: it was"
            " made for other data; delete it with scripts/cache.py and run again"
        )


def write_table(
    folder: Path, key: dict[str, Any], ids: np.ndarray, lengths: np.ndarray, values: np.ndarray, counts: dict
) -> None:
    """Write a table beside and rename it. ids int64[n], lengths int64[n, 2], values float32 in ids' order.

    Raise ValueError if a value is not a number: a row was not filled, or the reference model is broken.
    """
    order = np.argsort(ids, kind="stable")
    if len(np.unique(ids)) != len(ids):
        raise ValueError("two examples share an example id; prepare the data again")
    totals = lengths.sum(1)
    starts = np.concatenate([[0], np.cumsum(totals)])
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        example = ids[np.searchsorted(starts, bad[0], side="right") - 1]
        raise ValueError(
            f"{len(bad)} reference log-probs are missing or not finite, the first of example {example};"
            " check the reference model's weights"
        )
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    sorted_values = np.concatenate([values[starts[row] : starts[row + 1]] for row in order])
    arrays = (sorted_values.astype("<f4"), ids[order].astype("<i8"), lengths[order].astype("<i8"))
    for name, array in zip(FILES, arrays, strict=True):
        with open(beside / name, "wb") as file:
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
    checksums = {name: _checksum(beside / name) for name in FILES}
    write_json(beside / "table.json", {"format": FORMAT, "key": key, **counts, "checksums": checksums})
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def open_table(folder: Path, key: dict[str, Any]) -> Part | None:
    """Open the table in `folder`; None if there is none.

    Raise TornTableError if a file is damaged, ValueError if the table was made for another key.
    """
    if not folder.is_dir():
        return None
    head = _read_head(folder)
    if head.get("key") != key:
        found = head.get("key", {})
        differs = sorted(name for name in {*key, *found} if key.get(name) != found.get(name))
        raise ValueError(
            f"the reference cache {folder} was made for another {', '.join(differs)}; it was moved or edited:"
            " delete it with scripts/cache.py"
        )
    for name in FILES:
        if not (folder / name).is_file() or _checksum(folder / name) != head["checksums"].get(name):
            raise TornTableError(f"{folder / name} does not match its checksum")
    ids, lengths = (np.fromfile(folder / name, dtype="<i8") for name in FILES[1:])
    lengths = lengths.reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(lengths.sum(1))])
    return Part(ids, lengths, starts, np.memmap(folder / FILES[0], dtype="<f4", mode="r"))


def _read_head(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / "table.json").read_text())
        if head["format"] != FORMAT or not isinstance(head["checksums"], dict):
            raise TornTableError(f"{folder} has format {head['format']}, this version reads {FORMAT}")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TornTableError(f"{folder / 'table.json'} cannot be read: {error}") from error
    return head


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
