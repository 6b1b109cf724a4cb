"""AlpacaEval's own files, in and out: model outputs, annotations, difficulties, gamed annotations.

A path is a file, or `hub:<owner>/<dataset>/<file>` for a file of a dataset on the hub. Nothing of
AlpacaEval's data is part of this repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lab.answers.formats import locate

GAMED_COLUMNS = ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


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
