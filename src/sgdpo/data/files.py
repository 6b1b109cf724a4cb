"""Read rows from parquet, json, json lines, or a folder written by datasets' save_to_disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_from_disk

_BATCH = 256
_KINDS = "a parquet, json or jsonl file, or a folder written by datasets' save_to_disk"


def peek(path: Path, split: str, most: int) -> list[dict[str, Any]]:
    """Return the first rows. Raises ValueError with advice for what cannot be read."""
    rows = read(path, split)
    return list(islice(rows, most))


def read(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield all rows in the file's order. Raises ValueError with advice for what cannot be read."""
    _require(path)
    try:
        yield from _reader(path, split)
    except (OSError, pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); is it {_KINDS}?"
        ) from error


def count(path: Path, split: str) -> int:
    """Return the number of rows."""
    if path.is_dir():
        return len(_saved(path, split))
    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    return sum(1 for _ in read(path, split))


def content_hash(path: Path, split: str) -> str:
    """Return a hash of the bytes of the file, or of a saved data set's arrow files."""
    _require(path)
    digest = hashlib.sha256(split.encode() if path.is_dir() else b"")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode())
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _require(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path} does not exist; paths are relative to the folder you start from")
    if not path.is_dir() and path.suffix not in (".parquet", ".json", ".jsonl"):
        raise ValueError(f"{path} is of no known kind; give {_KINDS}")


def _reader(path: Path, split: str) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        return iter(_saved(path, split))
    if path.suffix == ".parquet":
        return _parquet(path)
    return _json(path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()


def _json(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a json array, or of json lines, whatever the file is called."""
    with open(path, encoding="utf-8") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        rows = (
            json.load(file)
            if first.lstrip().startswith("[")
            else (json.loads(li) for li in file if li.strip())
        )
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, row {number} is no object with named fields but {type(row).__name__}"
                )
            yield row


def _saved(path: Path, split: str) -> Dataset:
    try:
        loaded = load_from_disk(str(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is a folder but no saved data set ({error}); give {_KINDS}") from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(
            f"{path} holds the splits {', '.join(loaded)} but not {split!r}; set data.train_split (or kin)"
        )
    return loaded[split]
