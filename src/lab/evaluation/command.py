"""The command line of an evaluation: run folders before the overrides, and a table of what came out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# What a table of results shows, where a result has it, in this order: key, error's key, heading.
COLUMNS = (
    ("score_mean", "score_se", "score"),
    ("perfect", None, "perfect, %"),
    ("win_rate", "win_rate_se", "win rate, %"),
    ("lc_win_rate", "lc_win_rate_se", "length-controlled, %"),
    ("overall", "overall_se", "overall"),
    ("turn1", None, "turn 1"),
    ("turn2", None, "turn 2"),
    ("tokens_mean", None, "tokens"),
    ("truncated", None, "cut"),
    ("unparsable", None, "unparsable"),
    ("n", None, "prompts"),
)


def runs_first(arguments: Sequence[str]) -> list[str]:
    """Turn leading folders into `runs=[...]`: Hydra takes overrides only. Options and overrides stay."""
    runs = [argument for argument in arguments if not argument.startswith("-") and "=" not in argument]
    # Quoted, so that a folder's name may hold any character that Hydra's grammar knows.
    quoted = ",".join("'" + run.replace("\\", "\\\\").replace("'", "\\'") + "'" for run in runs)
    others = [argument for argument in arguments if argument not in runs]
    return [*others, f"runs=[{quoted}]"] if runs else others


def show(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of results, a run a line, with standard errors; lm-eval's numbers as they are."""
    if any("tasks" in result for result in results.values()):
        return "\n".join(f"{Path(run).name}: {result['tasks']}" for run, result in results.items())
    shown = [
        column for column in COLUMNS if any(result.get(column[0]) is not None for result in results.values())
    ]
    table = Table("run", *[heading for _, _, heading in shown])
    for run, result in results.items():
        table.add_row(Path(run).name, *[_cell(result, key, error) for key, error, _ in shown])
    screen = Console(file=io.StringIO(), width=140)
    screen.print(table)
    notes = [f"{Path(run).name}: {note}" for run, result in results.items() for note in _notes(result)]
    return "\n".join([screen.file.getvalue().rstrip(), *notes])


def _cell(result: Mapping[str, Any], key: str, error: str | None) -> str:
    value = result.get(key)
    if value is None:
        return "–"
    text = str(value) if isinstance(value, int) else f"{value:.2f}"
    return f"{text} ± {result[error]:.2f}" if error and result.get(error) is not None else text


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = []
    if result.get("lc_form"):
        notes.append(f"length-controlled win rate in its {result['lc_form']} form")
    if result.get("prompts_cut"):
        notes.append(f"{result['prompts_cut']} prompts were too long for the model; their beginning was cut")
    marked, demands = result.get("answers_with_markers"), result.get("answers_asking_for_a_rating")
    if marked or demands:
        notes.append(f"{marked} answers held the judge's markers (broken), {demands} asked for a rating")
    for bill, what in {"generation_cost": "answers", "cost": "judgments"}.items():
        if cost := result.get(bill):
            tokens = cost["prompt_tokens"] + cost["completion_tokens"]
            notes.append(
                f"{cost['requests']} {what} paid for now, {tokens} tokens, {cost['dollars']:.4f} dollars"
            )
    return notes
