"""Where rows come from: a generated world, the hub, or files. Nothing here runs code or loads a pickle.

The split is what the source says it is; nothing is shuffled. Files are streamed: parquet and saved data
sets row group by row group, json lines line by line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgdpo.config.schema import DataConfig
from sgdpo.data import files
from sgdpo.data.rows import missing_columns, pair_row, sft_row
from sgdpo.world import checker, tasks, verifiable

# How many of the first rows are read in full before anything heavy loads.
_PEEK = 20


@dataclass(frozen=True)
class Source:
    """Hold the rows of one split.

    name: what messages call it. key: a hash of the content, for caches. rows: an iterator, to be read once.
    count: how many rows there are.
    """

    name: str
    key: str
    count: int
    rows: Iterator[dict[str, Any]] = field(repr=False)


def split_location(data: DataConfig, phase: str, split: str) -> tuple[str | None, str]:
    """Return (path or hub id, name of the split). Without an SFT set the preference set's serves."""
    if phase == "sft":
        own = (data.sft, data.sft_split) if split == "train" else (data.sft_test, data.sft_test_split)
        if own[0] is not None or data.sft is not None:
            return own
    return (data.train, data.train_split) if split == "train" else (data.test, data.test_split)


def data_errors(data: DataConfig, phase: str) -> list[str]:
    """List what is wrong with the data's settings and files, with advice; nothing heavy loads."""
    errors = _setting_errors(data)
    if data.source == "generated":
        if data.world is None:
            errors.append(
                "data.world is missing: a generated set needs its settings (see conf/data/verifiable.yaml)"
            )
        else:
            errors += verifiable.world_errors(data.world)
    elif data.source == "hub":
        if split_location(data, phase, "train")[0] is None:
            errors.append("data.train is not set; name a data set on the hub, e.g. data=ultrafeedback")
    elif data.source == "files":
        errors += _file_errors(data, phase)
    return errors


def load_rows(data: DataConfig, phase: str, split: str) -> Source | None:
    """Open one split ("train" or "test") of a phase ("sft" or "preference"); None if the settings name none.

    Raises ValueError for what cannot be read, has not the columns, or is empty.
    """
    if data.source == "generated":
        return _generated(data, phase, split)
    where, name = split_location(data, phase, split)
    if where is None:
        return None
    source = _hub(where, name) if data.source == "hub" else _files(where, name)
    if source.count == 0:
        raise ValueError(f"{source.name} is empty: it holds no row")
    return source


def check_columns(source: Source, row: dict[str, Any], phase: str) -> None:
    """Raise ValueError that names the columns found, if the phase cannot read such rows."""
    if missing := missing_columns(list(row), phase):
        raise ValueError(f"{source.name} {missing}")


def _setting_errors(data: DataConfig) -> list[str]:
    errors = []
    if data.source not in ("generated", "hub", "files"):
        errors.append(f"data.source must be generated, hub or files, not {data.source!r}")
    for name, allowed in {
        "ties": ("keep", "drop"),
        "identical": ("keep", "drop"),
        "empty": ("drop", "error"),
        "refused": ("drop", "error"),
    }.items():
        if getattr(data, name) not in allowed:
            errors.append(f"data.{name} must be {' or '.join(allowed)}, not {getattr(data, name)!r}")
    for name in ("limit", "test_limit"):
        if getattr(data, name) is not None and getattr(data, name) < 1:
            errors.append(f"data.{name} must be at least 1, or null for all rows, not {getattr(data, name)}")
    # A beginning-of-text token and one more; and room for at least one token of an answer.
    if data.max_prompt_length < 2:
        errors.append(f"data.max_prompt_length must be at least 2 tokens, not {data.max_prompt_length}")
    if data.max_prompt_length >= data.max_length:
        errors.append(
            f"data.max_prompt_length ({data.max_prompt_length}) must be smaller than data.max_length "
            f"({data.max_length}): nothing would be left for the answer"
        )
    return errors


def _file_errors(data: DataConfig, phase: str) -> list[str]:
    if split_location(data, phase, "train")[0] is None:
        name = "data.train" if phase == "preference" else "data.train or data.sft"
        return [f"{name} is not set; name a parquet, json or jsonl file, or a folder written by save_to_disk"]
    errors = []
    for split in ("train", "test"):
        where, name = split_location(data, phase, split)
        if where is not None:
            errors += _peek_errors(where, name, phase)
    return errors


def _peek_errors(where: str, split: str, phase: str) -> list[str]:
    """Read the first rows of a file in full: that finds what is unreadable, missing, empty or malformed."""
    try:
        rows = files.peek(Path(where), split, _PEEK)
        if not rows:
            return [f"{where} is empty: it holds no row"]
        if missing := missing_columns(list(rows[0]), phase):
            return [f"{where} {missing}"]
        for number, row in enumerate(rows):
            try:
                pair_row(row) if phase == "preference" else sft_row(row)
            except ValueError as error:
                return [f"{where}, row {number}: {error}"]
    except ValueError as error:
        return [str(error)]
    return []


def _generated(data: DataConfig, phase: str, split: str) -> Source | None:
    assert data.world is not None
    held_out = split == "test"
    make = verifiable.make_pairs if phase == "preference" else verifiable.make_demonstrations
    train_count = data.world.pairs if phase == "preference" else data.world.demonstrations
    count = data.world.test_pairs if held_out else train_count
    if count == 0:
        if held_out:
            return None
        raise ValueError("the generated world is empty; raise data.world.pairs or data.world.demonstrations")
    # The generator's own source is part of the key: a changed generator never meets an old cache.
    words = [Path(module.__file__).read_text() for module in (tasks, checker, verifiable)]
    key = _hash([asdict(data.world), phase, split, *words])
    return Source(f"the generated {split} set", key, count, make(data.world, held_out=held_out))


def _hub(name: str, split: str) -> Source:
    from datasets import load_dataset  # takes a second, and only the hub needs it

    try:
        loaded = load_dataset(name, split=split)
    except Exception as error:  # the library raises a dozen kinds, of which all mean the same to the user
        raise ValueError(
            f"the data set {name!r} (split {split!r}) cannot be loaded from the hub: {error}. Without "
            f"network, download it elsewhere and use data=local with its parquet files"
        ) from error
    return Source(f"{name} ({split})", _hash([name, split, loaded._fingerprint]), len(loaded), iter(loaded))


def _files(where: str, split: str) -> Source:
    path = Path(where)
    return Source(where, files.content_hash(path, split), files.count(path, split), files.read(path, split))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
