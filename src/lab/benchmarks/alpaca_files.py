"""AlpacaEval's own files, in and out: model outputs, annotations, difficulties, gamed annotations.

A path is a file, or `hub:<owner>/<dataset>/<file>` for a file of a dataset on the hub. Nothing of
AlpacaEval's data is part of this repository.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import hf_hub_download

from sgdpo.store.jsonio import finite, write_whole

HUB = "hub:"
GAMED_COLUMNS = ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


def locate(path: str) -> Path:
    """Return the local file of a path or of a `hub:` address. Raise ValueError if it is not there."""
    if path.startswith(HUB):
        owner, dataset, name = path[len(HUB) :].split("/", 2)
        try:
            return Path(hf_hub_download(f"{owner}/{dataset}", name, repo_type="dataset"))
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{path} cannot be had from the hub ({reason}); download it, give its path"
            ) from None
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{path} does not exist; give a file, or an address like hub:tatsu-lab/alpaca_eval/..."
        )
    return file


def read_outputs(path: str) -> list[dict[str, Any]]:
    """Read a model_outputs.json: rows {instruction, output, generator, dataset}, in the file's order.

    Raises ValueError naming the row for a wrong form, a missing or empty field, or an instruction that comes
    twice.
    """
    rows = read_rows(locate(path), ("instruction", "output"))
    twice = [text for text, count in Counter(row["instruction"] for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {len(twice)} instructions come twice (first: {twice[0][:60]!r})")
    return rows


def read_rows(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read a JSON list of objects that all have string fields `keys`."""
    try:
        rows = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a JSON list of at least one row, as AlpacaEval writes it")
    for number, row in enumerate(rows):
        bad = [key for key in keys if not isinstance(row, Mapping) or not isinstance(row.get(key), str)]
        if bad:
            raise ValueError(f"{file}, row {number}: {bad} must be strings")
    return rows


def match(
    rows: Sequence[Mapping[str, Any]], instructions: Sequence[str], what: str
) -> list[Mapping[str, Any]]:
    """Return the row of each instruction. Raise ValueError for a missing one or one that is not asked for."""
    found = {row["instruction"]: row for row in rows}
    missing = [text for text in instructions if text not in found]
    extra = len(set(found) - set(instructions))
    if missing or extra:
        first = f" (first: {missing[0][:60]!r})" if missing else ""
        raise ValueError(
            f"{what} has {len(rows)} rows for {len(instructions)} instructions: "
            f"{len(missing)} are missing{first}, {extra} are of other instructions"
        )
    return [found[text] for text in instructions]


def write_list(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as AlpacaEval does: one JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(finite(list(rows)), indent=2, ensure_ascii=False) + "\n")


def read_difficulties(path: str, count: int) -> list[float]:
    """Read one difficulty an instruction from instruction_difficulty.csv, or from df_gamed.csv."""
    table = pd.read_csv(locate(path))
    if "instruction_difficulty" in table and "index" in table:
        values = table.drop_duplicates("index").set_index("index")["instruction_difficulty"]
    else:
        values = table.set_index(table.columns[0])[table.columns[1]]
    missing = sorted(set(range(count)) - set(values.index))
    if missing:
        raise ValueError(
            f"{path} has no difficulty for {len(missing)} of {count} instructions (first: {missing[0]})"
        )
    return [float(values[index]) for index in range(count)]


def read_gamed(path: str) -> pd.DataFrame:
    """Read df_gamed.csv, the annotations of the two gamed baselines."""
    table = pd.read_csv(locate(path))
    if absent := [column for column in GAMED_COLUMNS if column not in table]:
        raise ValueError(f"{path} lacks the columns {absent}; it must be AlpacaEval's df_gamed.csv")
    return table[list(GAMED_COLUMNS)]
