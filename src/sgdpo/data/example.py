"""The token ids of one example, and a read-only sequence of them on disk: what the data side hands over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from sgdpo.store import hash_buffers

_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("row", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
        # Empty where every token of the side is trained.
        ("chosen_mask", pa.list_(pa.uint8())),
        ("rejected_mask", pa.list_(pa.uint8())),
        # Null where the row does not say.
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
        ("weight", pa.float64()),
    ]
)
# What a method may be told of an example beside its tokens; no part of the fingerprint, which the tokens' cache of
# reference log-probs is found by.
_TOKENS = ("example_id", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask")
_NUMBERS = ("score_chosen", "score_rejected", "weight")
_ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class Example:
    """Hold the token ids of one preference pair, or of one SFT conversation.

    example_id: int64, stable over runs, shuffles and machines; keys the draws and the reference cache.
    prompt_ids, chosen_ids, rejected_ids: int32; the closing end-of-turn token is part of a completion.
        rejected_ids is empty in the SFT phase.
    chosen_mask, rejected_mask: bool, which tokens of the side are trained; no rejected_mask: all of them.
    score_chosen, score_rejected: the data's scores of the answers; NaN where it has none.
    weight: what the example weighs in the mean of the losses, above 0; None: no example of its set says.
    row: where it stands in the source, from 0; for people, nothing is computed from it.
    """

    example_id: int
    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    chosen_mask: np.ndarray
    rejected_mask: np.ndarray | None = None
    score_chosen: float = math.nan
    score_rejected: float = math.nan
    weight: float | None = None
    row: int = -1

    @property
    def trained(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of the trained tokens in the chosen and in the rejected completion."""
        rejected = (
            np.arange(len(self.rejected_ids))
            if self.rejected_mask is None
            else self.rejected_mask.nonzero()[0]
        )
        return self.chosen_mask.nonzero()[0], rejected

    @property
    def trained_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the trained tokens of both sides."""
        chosen, rejected = self.trained
        return self.chosen_ids[chosen], self.rejected_ids[rejected]


class Examples(Sequence[Example]):
    """Read examples from a memory-mapped arrow file; cheap to open, to index and to send to a worker.

    ids, rows: int64[n]. lengths: int64[n, 3], tokens of prompt, chosen, rejected. trained: int64[n, 2], of both sides
    those that are trained. fingerprint: a hash of all tokens.
    numbers: of every example, by name, float64[n], NaN where the data has none.
    """

    def __init__(self, path: Path, fingerprint: str):
        self.path, self.fingerprint = Path(path), fingerprint
        self._table = Dataset.from_file(str(path)).data.table
        self.ids, self.rows = _flat(self._table["example_id"]), _flat(self._table["row"])
        sides = (self._table[f"{side}_ids"] for side in ("prompt", "chosen", "rejected"))
        self.lengths = np.stack([_flat(pa.compute.list_value_length(side)) for side in sides], axis=1).astype(
            np.int64
        )
        self.trained = np.stack(
            [self._trained(side, n) for n, side in enumerate(("chosen", "rejected"), 1)], axis=1
        )
        self.numbers = {name: self._table[name].to_numpy().astype(np.float64) for name in _NUMBERS}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        chosen = self._read("chosen_ids", index)
        mask, rejected_mask = (
            self._read(f"{side}_mask", index).view(bool) for side in ("chosen", "rejected")
        )
        return Example(
            example_id=int(self.ids[index]),
            prompt_ids=self._read("prompt_ids", index),
            chosen_ids=chosen,
            rejected_ids=self._read("rejected_ids", index),
            chosen_mask=mask if len(mask) else np.ones(len(chosen), bool),
            rejected_mask=rejected_mask if len(rejected_mask) else None,
            score_chosen=float(self.numbers["score_chosen"][index]),
            score_rejected=float(self.numbers["score_rejected"][index]),
            weight=None if math.isnan(weight := float(self.numbers["weight"][index])) else weight,
            row=int(self.rows[index]),
        )

    def __reduce__(self) -> tuple[type[Examples], tuple[Path, str]]:
        # A worker maps the file again instead of receiving the tokens.
        return Examples, (self.path, self.fingerprint)

    def _trained(self, side: str, column: int) -> np.ndarray:
        masks = self._table[f"{side}_mask"]
        given = _flat(pa.compute.list_value_length(masks))
        ends = np.cumsum(given)
        total = np.concatenate([[0], np.cumsum(_flat(pa.compute.list_flatten(masks)), dtype=np.int64)])
        return np.where(given > 0, total[ends] - total[ends - given], self.lengths[:, column])

    def _read(self, column: str, index: int) -> np.ndarray:
        return self._table[column][index].values.to_numpy(zero_copy_only=True)


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """Write examples to an arrow file and return the fingerprint of its content."""
    with open(path, "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as stream:
        return hash_buffers(_written(iter(examples), stream))


def _written(examples: Iterator[Example], stream: pa.RecordBatchStreamWriter) -> Iterator[bytes]:
    """Write the examples; yield what the fingerprint is made of."""
    while batch := [_row(example) for example in islice(examples, _ROWS_PER_BATCH)]:
        for value in (row[name] for row in batch for name in _TOKENS):
            yield np.asarray(value, np.int64).tobytes()
            yield b"|"
        stream.write_table(pa.Table.from_pylist(batch, schema=_SCHEMA))


def _row(example: Example) -> dict[str, object]:
    mask, other = example.chosen_mask, example.rejected_mask
    return {
        "example_id": example.example_id,
        "row": example.row,
        "prompt_ids": example.prompt_ids,
        "chosen_ids": example.chosen_ids,
        "rejected_ids": example.rejected_ids,
        "chosen_mask": np.empty(0, np.uint8) if mask.all() else mask.astype(np.uint8),
        "rejected_mask": np.empty(0, np.uint8) if other is None or other.all() else other.astype(np.uint8),
        "score_chosen": None if math.isnan(example.score_chosen) else example.score_chosen,
        "score_rejected": None if math.isnan(example.score_rejected) else example.score_rejected,
        "weight": example.weight,
    }


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy() if column.num_chunks else np.empty(0, np.int64)
