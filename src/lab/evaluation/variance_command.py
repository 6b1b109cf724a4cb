"""The command line of the judge's variance: runs and overrides, or files of judgments that there are already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lab.answers.formats import read_rows
from lab.benchmarks.alpaca_files import match
from lab.evaluation.command import runs_first
from lab.evaluation.settings import compose_evaluation
from lab.evaluation.variance import MIDDLE, Spread, keep, measure, show, spread
from sgdpo.store import read_jsonl

DEFAULT_OUTPUT = Path("outputs/figure1/judge_variance.json")


def measure_all(
    words: Sequence[str],
    benchmarks: Sequence[str],
    repeats: int,
    files: Sequence[Sequence[str]],
    output: Path,
) -> Table:
    """Measure the variance on each benchmark (or of each set of files), keep it, and return a table.

    Raises ValueError with advice if neither runs nor files are named, before anything is paid for.
    """
    spreads: dict[str, Spread] = {}
    for benchmark, *paths in files:
        spreads[f"{benchmark}-files"] = read_spread(benchmark, paths)
        keep(output, f"{benchmark}-files", spreads[f"{benchmark}-files"])
    if not files:
        _require(words, repeats)
        configs = [compose_evaluation(runs_first([f"benchmark={name}", *words])) for name in benchmarks]
        for config in configs:
            key = f"{config.benchmark.name}-{config.judge['label']}"
            spreads[key] = measure(config, repeats)
            keep(output, key, spreads[key])
    return show(spreads)


def _require(words: Sequence[str], repeats: int) -> None:
    if not any("=" not in word for word in words):
        raise ValueError(
            "name a run whose answers are judged, and the judge: scripts/judge_variance.py outputs/<experiment>/<run> "
            "judge=openai (or judge=local), or judgments that there are already: --files BENCHMARK FILE FILE"
        )
    if repeats < 2:
        raise ValueError(f"--repeats must be 2 or more, not {repeats}: one judgment has no spread")


def read_spread(benchmark: str, paths: Sequence[str]) -> Spread:
    """Return the spread of judgments in files: annotations.json (alpaca_eval) or FastChat's rows (mt_bench).

    Raises ValueError for fewer than two files, an unknown benchmark, or files of different answers.
    """
    if benchmark not in ("alpaca_eval", "mt_bench") or len(paths) < 2:
        raise ValueError("--files takes alpaca_eval or mt_bench, then two or more files of judgments")
    read = _read_annotations if benchmark == "alpaca_eval" else _read_scores
    tables = [read(Path(path)) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if set(table) != set(tables[0]):
            raise ValueError(f"{path} judges other answers than {paths[0]}; variance needs identical ones")
    return spread([[table[key] for key in tables[0]] for table in tables], MIDDLE.get(benchmark))


def _read_annotations(file: Path) -> dict[tuple, float | None]:
    rows = read_rows(file, ("instruction", "output_1", "output_2"))
    match(rows, list(dict.fromkeys(row["instruction"] for row in rows)), str(file))
    keys = ("instruction", "output_1", "output_2")
    return {
        tuple(row[key] for key in keys): None if row.get("preference") is None else row["preference"] - 1
        for row in rows
    }


def _read_scores(file: Path) -> dict[tuple, float | None]:
    return {
        (row["question_id"], row["turn"], row.get("user_prompt")): row["score"] if row["score"] > 0 else None
        for row in read_jsonl(file)
    }
