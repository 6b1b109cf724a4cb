"""Where rows come from: a function that the data set's YAML names, with settings of its own.

    def read(phase, split, *, settings): -> Rows, or a list of rows, or None for a split that it has not

phase: "sft", "preference", or "prompts" (what a model is to answer; a source's other rows serve, as their prompts).
split: "train" or "test"; it is what the source says it is, nothing is shuffled.
The function and its YAML are bound by the one contract (`sgdpo.contract`); nobody knows a source by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from itertools import islice
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from sgdpo.config.schema import DataConfig
from sgdpo.contract import Kind, binding_errors, load
from sgdpo.data.rows import READ, SCORES, RefusedError, Rows, missing_columns, row_weight
from sgdpo.places import CONF
from sgdpo.store import hash_json
from sgdpo.values import schema_errors

DATA = Kind("data", positional=("phase", "split"))
NUMBERS = (*SCORES, "weight")
# Columns that are read of SFT rows alone.
SFT_ALONE = ("messages", "mask")
# How many of the first rows are read in full before anything heavy loads.
_PEEK = 20


def data_errors(
    data: DataConfig,
    phase: str,
    extra: Sequence[str] = (),
    folders: Sequence[Path] = (CONF,),
    *,
    scores: bool = False,
) -> list[str]:
    """List what is wrong with the data's settings and first rows, with advice; nothing heavy loads.

    extra: files that the user named on this command, in which the function may be. folders: where YAMLs come from.
    scores: the method asks for them.
    """
    errors = _setting_errors(data)
    if bound := binding_errors(DATA, _yaml(data), extra, folders):
        return errors + bound
    for split in ("train", "test"):
        try:
            if (rows := load_rows(data, phase, split, extra)) is not None and not rows.remote:
                _peek(rows, phase, data.weights, scores)
        except ValueError as error:
            errors += str(error).split("\n")
    return list(dict.fromkeys(errors))


def load_rows(data: DataConfig, phase: str, split: str, extra: Sequence[str] = ()) -> Rows | None:
    """Open one split ("train" or "test") of a phase; None if the source has none.

    Raises ValueError for what cannot be opened.
    """
    given = load(DATA, _yaml(data), extra)(phase, split, **data.settings)
    if given is None and split == "train":
        raise ValueError(
            f"data {data.name!r} has no training rows for the {phase} phase; see its YAML's settings"
        )
    rows = _as_rows(given, f"{data.name} ({split})")
    return None if rows is None else replace(rows, read=lambda: _read(rows, data.columns or {}, phase))


def data_contents(
    data: DataConfig, phase: str, memory: Path | None = None, extra: Sequence[str] = ()
) -> dict[str, str]:
    """Return the hash of the content of each split that the phase reads. memory: as in `store.hash_file`."""
    splits = {split: load_rows(data, phase, split, extra) for split in ("train", "test")}
    return {split: rows.key(memory) for split, rows in splits.items() if rows is not None}


def check_columns(name: str, row: Mapping[str, Any], phase: str) -> None:
    """Raise ValueError that names the columns found, if the phase cannot read such rows."""
    if missing := missing_columns(list(row), phase):
        raise ValueError(
            f"{name} {missing}; data.columns can name them, e.g. data.columns={{prompt: question}}"
        )


def _yaml(data: DataConfig) -> dict[str, Any]:
    return {"name": data.name, "function": data.function, **data.settings}


def _as_rows(given: Any, name: str) -> Rows | None:
    """Take what a source returns: Rows, or the rows themselves."""
    if given is None or isinstance(given, Rows):
        return given
    if isinstance(given, Iterator):
        given = list(given)
    if not isinstance(given, Sequence) or not all(isinstance(row, Mapping) for row in given):
        raise ValueError(f"{name}: a data source returns Rows, a list of rows ({{column: value}}) or None")
    return Rows(
        name,
        lambda: iter(given),
        lambda: len(given),
        lambda memory=None: hash_json(_plain(list(given), name)),
    )


def _plain(value: Any, name: str) -> Any:
    """Return a source's value as JSON knows it, so that it can be hashed; NumPy's are its numbers and lists."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, Decimal | date):
        return str(value)
    if not hasattr(value, "tolist"):
        raise ValueError(
            f"{name}: a row holds a {type(value).__name__}; its columns may be text, numbers, dates, lists and objects"
        )
    return _plain(value.tolist(), name)


def _read(rows: Rows, columns: Mapping[str, str], phase: str) -> Iterator[dict[str, Any]]:
    """Yield the rows under the names that this code reads, scores and weights as numbers; other columns stay.

    Rows must hold what is mapped for their phase alone. What is mapped for pairs may be no matter to SFT's own file.
    """
    moved = set(columns.values())
    required = {
        theirs for ours, theirs in columns.items() if phase == ("sft" if ours in SFT_ALONE else "preference")
    }
    for number, row in enumerate(rows.read()):
        if absent := sorted(required - set(row)):
            raise ValueError(
                f"{rows.name}, row {number} has no column {', '.join(absent)}, which data.columns names; "
                f"found: {', '.join(row) or 'none'}"
            )
        kept = {name: value for name, value in row.items() if name not in moved}
        named = kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
        yield named | {name: _number(named[name]) for name in NUMBERS if name in named}


def _number(value: Any) -> Any:
    """Return a score or a weight as a number if it is one, whatever its set writes it as; an empty cell as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # NumPy's
    if isinstance(value, int | float) or not isinstance(value, str | Real | Decimal):
        return value
    try:
        number = None if value == "" else float(value)
    except ValueError:
        return value
    return number if number is None or isfinite(number) else value


def _peek(rows: Rows, phase: str, weights: str, scores: bool) -> None:
    """Read the first rows in full: that finds what is unreadable, missing, empty or malformed."""
    empty = True
    for number, row in enumerate(islice(rows.read(), _PEEK)):
        empty = False
        check_columns(rows.name, row, phase)
        try:
            row_weight(row, weights)
            READ[phase](row)
            if scores and (absent := [column for column in SCORES if row.get(column) is None]):
                raise ValueError(
                    f"no {' and no '.join(absent)}, which the method asks for (needs.scores); found: {', '.join(row)}"
                )
        except RefusedError:
            continue  # data.refused decides, when the set is read
        except ValueError as error:
            raise ValueError(f"{rows.name}, row {number}: {error}") from None
    if empty:
        raise ValueError(f"{rows.name} is empty: it holds no row")


def _setting_errors(data: DataConfig) -> list[str]:
    errors = list(schema_errors(data, "data."))
    known = ("prompt", "chosen", "rejected", *SFT_ALONE, *NUMBERS, "chosen_mask", "rejected_mask")
    if unknown := sorted(set(data.columns or {}) - set(known)):
        errors.append(
            f"data.columns has {', '.join(unknown)}; it maps {', '.join(known)} to columns of the set"
        )
    if data.max_prompt_length >= data.max_length:
        errors.append(
            f"data.max_prompt_length ({data.max_prompt_length}) must be smaller than data.max_length "
            f"({data.max_length}): nothing would be left for the answer"
        )
    return errors
