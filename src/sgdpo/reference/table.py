"""The reference's log-probs of one tokenised set, found by example id: `store/stretches.py` keeps them on disk.

Of each example, in the set's order, the file holds the chosen completion's log-probs, then the rejected one's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sgdpo.data.example import Example
from sgdpo.store import hash_buffers, hash_json
from sgdpo.store.stretches import Stretches

FORMAT = 2
WHAT = "the reference log-probs"


class ExampleSet(Protocol):
    """Name what a table needs of a data set: `ids` int64[n], `lengths` int64[n, 3], `trained` int64[n, 2], a hash."""

    ids: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class Table:
    """Hold the log-probs of one data set. present: bool[n], which examples are computed."""

    def __init__(self, cache: Path, key: dict[str, Any], examples: ExampleSet) -> None:
        arrays = (np.ascontiguousarray(array, "<i8").data for array in (examples.ids, examples.lengths))
        content = hash_buffers([examples.fingerprint.encode(), *arrays])
        self.key = {"format": FORMAT, **key, "examples": content}
        self.order = np.argsort(examples.ids, kind="stable")
        self.ids = np.asarray(examples.ids)[self.order]
        if (self.ids[1:] == self.ids[:-1]).any():
            raise ValueError("two examples share an example id; prepare the data again")
        self.chosen = np.asarray(examples.trained)[:, 0]
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(examples.trained).sum(1))])
        self.present = np.zeros(len(self.ids), bool)
        self.file = Stretches(Path(cache) / "reference" / hash_json(self.key), int(self.starts[-1]))

    @property
    def folder(self) -> Path:
        return self.file.folder

    def open(self) -> None:
        """Make or mend the files: `Stretches.open`. Only the lock's holder may."""
        self.file.open(self.key, WHAT)

    def read(self) -> None:
        """Take note of what is there, once the lock's holder has opened it."""
        filled = np.array(list(self.file.spans()), np.int64).reshape(-1, 2)
        index = np.searchsorted(self.starts[:-1], filled[:, 0])
        assert (self.starts[index] == filled[:, 0]).all(), self.folder
        self.present[index] = True

    def add(self, values: Mapping[int, np.ndarray]) -> None:
        """Keep the values of some examples, by position, on the disk. Only the lock's holder may.

        Raise ValueError if one is not finite: the reference model is broken.
        """
        if bad := [index for index, found in values.items() if not np.isfinite(found).all()]:
            example = int(self.ids[np.flatnonzero(self.order == bad[0])[0]])
            raise ValueError(
                f"the reference log-probs of {len(bad)} examples are not finite, the first of example {example};"
                " check the reference model's weights"
            )
        spans = [(int(self.starts[index]), int(self.starts[index + 1])) for index in values]
        self.file.add(spans, list(values.values()))

    def find(self, example_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the log-probs of both sides, float32, nats, or None if the table does not hold them."""
        place = int(np.searchsorted(self.ids, example_id))
        if place == len(self.ids) or self.ids[place] != example_id or not self.present[self.order[place]]:
            return None
        index = int(self.order[place])
        both = self.file.values[self.starts[index] : self.starts[index + 1]]
        return both[: self.chosen[index]], both[self.chosen[index] :]


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
            if (found := part.find(example_id)) is not None:
                return found
        raise ValueError(
            f"example {example_id} is not in the reference cache, which holds {len(self)} examples: it was"
            " made for other data; delete it with scripts/cache.py and run again"
        )
