"""The reference's log-probs of one tokenised set on disk: they fill up over time, each stretch with its hash.

A table is a folder `<cache>/reference/<hash of its key>/`:
    table.json     the key (what the values depend on, and nothing else) and the number of values
    values.f32     float32, a place for every completion token of the set in the set's order: of each example the
                   chosen side, then the rejected one; a hole in the file until it is computed
    filled.jsonl   a line for each stretch of work: which examples, the SHA-256 of their values
One process writes, the holder of the folder's lock: values first, and when they are on the disk, their line. So a
killed pass keeps its stretches, and whatever does not match its line is computed again. All others map the same
file into memory: it is held once for all ranks and runs of a machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sgdpo.data.example import Example
from sgdpo.store import (
    DamagedError,
    JsonLines,
    hash_buffers,
    hash_json,
    read_json,
    read_jsonl,
    remove,
    sync,
    write_json,
    write_jsonl,
)

log = logging.getLogger(__name__)

FORMAT = 2
HEAD, VALUES, FILLED = "table.json", "values.f32", "filled.jsonl"
BYTES = 4


class ExampleSet(Protocol):
    """Name what a table needs of a data set: `ids` int64[n], `lengths` int64[n, 3], `fingerprint`."""

    ids: np.ndarray
    lengths: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class Table:
    """Hold the log-probs of one data set; the values stay on disk, mapped into memory.

    present: bool[n], which examples are computed.
    """

    def __init__(self, cache: Path, key: dict[str, Any], examples: ExampleSet) -> None:
        arrays = (_bytes(np.asarray(array, "<i8")) for array in (examples.ids, examples.lengths))
        content = hash_buffers([examples.fingerprint.encode(), *arrays])
        self.key = {"format": FORMAT, **key, "examples": content}
        self.folder = Path(cache) / "reference" / hash_json(self.key)
        self.order = np.argsort(examples.ids, kind="stable")
        self.ids = np.asarray(examples.ids)[self.order]
        if (self.ids[1:] == self.ids[:-1]).any():
            raise ValueError("two examples share an example id; prepare the data again")
        self.sides = np.asarray(examples.lengths)[:, 1:]
        self.starts = np.concatenate([[0], np.cumsum(self.sides.sum(1))])
        self.present = np.zeros(len(self.ids), bool)

    def check(self) -> None:
        """Make the files if there are none; drop with a word what is damaged. Only the lock's holder may.

        Raise ValueError if the table was made for another key.
        """
        if not self._is_there():
            remove(self.folder)
            self.folder.mkdir(parents=True)
            write_json(self.folder / HEAD, {"key": self.key})
        place = self.folder / VALUES
        with open(os.open(place, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if file.seek(0, os.SEEK_END) != BYTES * int(self.starts[-1]):
                file.truncate(BYTES * int(self.starts[-1]))
        damaged: list[str] = []
        stretches = read_jsonl(self.folder / FILLED, torn_end=True, damaged=damaged.append)
        intact = [stretch for stretch in stretches if self._is_intact(stretch)]
        if lost := len(damaged) + len(stretches) - len(intact):
            log.warning(
                "the reference log-probs in %s are damaged: %d of %d stretches are computed again",
                self.folder, lost, len(damaged) + len(stretches),
            )  # fmt: skip
        write_jsonl(self.folder / FILLED, intact)  # without a torn end: it is appended to
        self.read()

    def read(self) -> None:
        """Take note of what is there, after the lock's holder checked it."""
        self.__dict__.pop("values", None)
        for stretch in read_jsonl(self.folder / FILLED, torn_end=True):
            self.present[stretch["examples"]] = True

    def add(self, values: dict[int, np.ndarray]) -> None:
        """Keep the values of some examples, by position, on the disk. Only the lock's holder may.

        Raise ValueError if one is not finite: the reference model is broken.
        """
        if bad := [index for index, found in values.items() if not np.isfinite(found).all()]:
            example = int(self.ids[np.flatnonzero(self.order == bad[0])[0]])
            raise ValueError(
                f"the reference log-probs of {len(bad)} examples are not finite, the first of example {example};"
                " check the reference model's weights"
            )
        with open(self.folder / VALUES, "r+b") as file:
            for index, found in values.items():
                assert len(found) == self.sides[index].sum(), "a reference row trains every completion token"
                file.seek(BYTES * int(self.starts[index]))
                file.write(np.ascontiguousarray(found, dtype="<f4").data)
        sync(self.folder / VALUES)
        stretch = {"examples": list(values), "sha256": hash_buffers(map(_bytes, values.values()), 64)}
        with JsonLines(self.folder / FILLED) as lines:
            lines.append(stretch, durable=True)
        self.present[list(values)] = True

    def find(self, example_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the log-probs of both sides, float32, nats, or None if the table does not hold them."""
        place = int(np.searchsorted(self.ids, example_id))
        if place == len(self.ids) or self.ids[place] != example_id or not self.present[self.order[place]]:
            return None
        index = int(self.order[place])
        both = self.values[self.starts[index] : self.starts[index + 1]]
        return both[: self.sides[index][0]], both[self.sides[index][0] :]

    @cached_property
    def values(self) -> np.ndarray:
        """Map the file of values; nothing is read yet."""
        return np.memmap(self.folder / VALUES, dtype="<f4", mode="r", shape=(int(self.starts[-1]),))

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the file again instead of receiving its content.
        return {name: value for name, value in self.__dict__.items() if name != "values"}

    def _is_there(self) -> bool:
        if not os.path.lexists(self.folder):
            return False
        try:
            found = read_json(self.folder / HEAD, kind=dict).get("key")
        except DamagedError as error:
            log.warning("the reference log-probs are damaged (%s): they are computed again", error)
            return False
        if found == self.key:
            return True
        found = found if isinstance(found, dict) else {}
        differs = sorted(name for name in {*self.key, *found} if self.key.get(name) != found.get(name))
        raise ValueError(
            f"the reference cache {self.folder} was made for another {', '.join(differs)}; it was moved or edited:"
            " delete it with scripts/cache.py"
        )

    def _is_intact(self, stretch: dict[str, Any]) -> bool:
        examples = stretch.get("examples")
        if not isinstance(examples, list) or not all(
            type(index) is int and 0 <= index < len(self.ids) for index in examples
        ):
            return False
        parts = (_bytes(self.values[self.starts[i] : self.starts[i + 1]]) for i in examples)
        return hash_buffers(parts, 64) == stretch.get("sha256")


class ReferenceTable:
    """Hold the reference log-probs of one or several data sets.

    forward_tokens: tokens that this process (with its fellow ranks) ran through the reference model to get
    them; 0 if all of them were found. computed, reused: examples that were and were not.
    """

    def __init__(self, parts: Sequence[Table], forward_tokens: int, computed: int, reused: int) -> None:
        self._parts, self.forward_tokens = list(parts), forward_tokens
        self.computed, self.reused = computed, reused

    def __len__(self) -> int:
        return sum(int(part.present.sum()) for part in self._parts)

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


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data
