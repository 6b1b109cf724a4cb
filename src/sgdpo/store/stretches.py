"""A file of float32 values that fills up over time, each stretch of work with its hash.

    about.json     the key (what the values depend on, and nothing else) and the number of values
    values.f32     a place for every value; a hole in the file until it is computed
    filled.jsonl   a line for each stretch: its spans in the file, and the SHA-256 of their values
One process writes, the holder of the folder's lock: values first, and when they are on the disk, their line. So a
killed writer's stretches stay, and whatever does not match its line counts as a hole. All others map the same file
into memory: a machine holds it once.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sgdpo.store.files import DamagedError, JsonLines, read_json, read_jsonl, sync, write_json, write_jsonl
from sgdpo.store.hashes import hash_buffers
from sgdpo.store.once import remove

log = logging.getLogger(__name__)

ABOUT, VALUES, FILLED = "about.json", "values.f32", "filled.jsonl"
BYTES = 4

Span = Sequence[int]


class Stretches:
    """Hold such a file, `size` values long, in a folder."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size

    @cached_property
    def values(self) -> np.ndarray:
        """Map the values; nothing is read yet."""
        return np.memmap(self.folder / VALUES, dtype="<f4", mode="r", shape=(self.size,))

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the file again instead of receiving its content.
        return {"folder": self.folder, "size": self.size}

    def spans(self) -> Iterator[Span]:
        """Yield the (first, end) of what is filled, as the lock's holder left it."""
        for stretch in read_jsonl(self.folder / FILLED, torn_end=True):
            yield from stretch["spans"]

    def open(self, key: dict[str, Any], what: str) -> None:
        """Make the files if there are none; drop what is damaged, with a word. Only the lock's holder may.

        what: their name in messages. Raise ValueError if they were made for another key.
        """
        if not self._is_made(key, what):
            remove(self.folder)
            self.folder.mkdir(parents=True)
            write_json(self.folder / ABOUT, {"key": key, "values": self.size})
        with open(os.open(self.folder / VALUES, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if file.seek(0, os.SEEK_END) != BYTES * self.size:
                file.truncate(BYTES * self.size)
        intact, lost = self._sorted()
        if lost:
            log.warning(
                "%s in %s are damaged: %d of %d stretches are computed again",
                what, self.folder, lost, lost + len(intact),
            )  # fmt: skip
        write_jsonl(self.folder / FILLED, intact)  # without a torn end: it is appended to

    def add(self, spans: Sequence[Span], values: Sequence[np.ndarray]) -> None:
        """Keep the values of these spans, on the disk. Only the lock's holder may."""
        with open(self.folder / VALUES, "r+b") as file:
            for (first, end), found in zip(spans, values, strict=True):
                assert len(found) == end - first, (first, end, len(found))
                file.seek(BYTES * first)
                file.write(np.ascontiguousarray(found, dtype="<f4").data)
        sync(self.folder / VALUES)
        with JsonLines(self.folder / FILLED) as lines:
            lines.append({"spans": spans, "sha256": _hash(values)}, durable=True)

    def damage(self) -> str | None:
        """Return what is damaged, as a phrase, None if all that is filled is as it was written."""
        if not (self.folder / VALUES).is_file():
            return f"{VALUES} is missing"
        if (found := (self.folder / VALUES).stat().st_size) != BYTES * self.size:
            return f"{VALUES} has {found} bytes instead of {BYTES * self.size}"
        intact, lost = self._sorted()
        return f"{lost} of {lost + len(intact)} stretches are not as they were written" if lost else None

    def _sorted(self) -> tuple[list[dict[str, Any]], int]:
        """Return the stretches that are intact, and the number of the others."""
        lost: list[str] = []
        stretches = read_jsonl(self.folder / FILLED, torn_end=True, damaged=lost.append)
        intact = [stretch for stretch in stretches if self._is_intact(stretch)]
        return intact, len(lost) + len(stretches) - len(intact)

    def _is_intact(self, stretch: dict[str, Any]) -> bool:
        try:
            whole = all(0 <= first < end <= self.size for first, end in stretch["spans"])
            return (
                whole
                and _hash([self.values[first:end] for first, end in stretch["spans"]]) == stretch["sha256"]
            )
        except (KeyError, TypeError, ValueError):
            return False

    def _is_made(self, key: dict[str, Any], what: str) -> bool:
        if not os.path.lexists(self.folder):
            return False
        try:
            about = read_json(self.folder / ABOUT, kind=dict)
        except DamagedError as error:
            log.warning("%s are damaged (%s): they are computed again", what, error)
            return False
        if about == {"key": key, "values": self.size}:
            return True
        found = about.get("key") if isinstance(about.get("key"), dict) else {}
        differs = sorted(name for name in {*key, *found} if key.get(name) != found.get(name)) or [
            "number of values"
        ]
        raise ValueError(
            f"{what} in {self.folder} were made for another {', '.join(differs)}; they were moved or edited: delete"
            " them with scripts/cache.py"
        )


def _hash(values: Sequence[np.ndarray]) -> str:
    return hash_buffers((np.ascontiguousarray(found, dtype="<f4").data for found in values), 64)
