"""How much a judge disagrees with itself: the same answers judged twice or more (the paper's figure 1).

Differences are in the judge's own unit: the preference of a prompt (0 to 1), or the score of a turn (1 to
10).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lab.benchmarks.benchmark import Benchmark, refuse_unparsable
from lab.benchmarks.statistics import NORMAL_95
from lab.evaluation.evaluate import judge_samples, opened
from lab.evaluation.settings import (
    EvaluateConfig,
    absent,
    build_benchmark,
    compose_evaluation,
    evaluation_errors,
    is_setting,
    runs_first,
)
from sgdpo.drawing.table import Table, number
from sgdpo.runs.records import view_run
from sgdpo.source import load_dotted
from sgdpo.store import read_json, write_json

DEFAULT_OUTPUT = Path("outputs/figure1/judge_variance.json")


@dataclass(frozen=True)
class Spread:
    """Hold what repeated judgments of the same answers say.

    differences: later less earlier judgment, over every pair of repeats. correlation: mean test-retest
    correlation, None if a repeat is constant. flips: share of preferences that change sides, None for scores.
    interval: half the width of the 95 % interval that the judge's noise alone gives the mean of one judging.
    deviation: of the differences, same: the share of them that is 0. n: answers. unparsable: answers left out.
    """

    differences: list[float]
    correlation: float | None
    flips: float | None
    interval: float
    deviation: float
    same: float
    n: int
    repeats: int
    unparsable: int


def spread(scores_RB: Sequence[Sequence[float | None]], middle: float | None) -> Spread:
    """Summarise repeated judgments, shape (repeats, answers). Raise ValueError below two repeats or answers.

    An answer that any repeat left unparsable is left out and counted; more than 5 % are refused.
    """
    table = np.array(scores_RB, dtype=float)  # None becomes NaN
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"judge variance needs at least 2 judgments of 2 answers, got {table.shape}")
    known_B = np.isfinite(table).all(0)
    refuse_unparsable(int((~known_B).sum()), table.shape[1])
    table = table[:, known_B]
    pairs = list(combinations(table, 2))
    differences = np.concatenate([later - earlier for earlier, later in pairs])
    within = table.var(axis=0, ddof=1).mean()
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in pairs if np.ptp(a) and np.ptp(b)]
    flips = None if middle is None else float(np.mean([(a - middle) * (b - middle) < 0 for a, b in pairs]))
    return Spread(
        differences=differences.tolist(),
        correlation=float(np.mean(correlations)) if correlations else None,
        flips=flips,
        interval=float(NORMAL_95 * np.sqrt(within / table.shape[1])),
        deviation=float(differences.std()),
        same=float(np.mean(differences == 0)),
        n=table.shape[1],
        repeats=len(table),
        unparsable=int((~known_B).sum()),
    )


def asked(words: Sequence[str], benchmarks: Sequence[str], repeats: int) -> list[EvaluateConfig]:
    """Return the evaluation of each benchmark. Raise ValueError with all that is wrong, before anything is paid for.

    words: run folders and overrides.
    """
    if all(map(is_setting, words)):
        raise ValueError(
            "name a run whose answers are judged, and the judge: scripts/judge_variance.py "
            "outputs/<experiment>/<run> judge=openai (or judge=local), or judgments that there are already: "
            "--files BENCHMARK FILE FILE"
        )
    if repeats < 2:
        raise ValueError(f"--repeats must be 2 or more, not {repeats}: one judgment has no spread")
    configs = [compose_evaluation(runs_first([f"benchmark={name}", *words])) for name in benchmarks]
    if errors := dict.fromkeys(error for config in configs for error in _errors(config)):
        raise ValueError("\n".join(errors))
    return configs


def _errors(config: EvaluateConfig) -> list[str]:
    if errors := evaluation_errors(config):
        return errors
    if load_dotted(config.judge["class"], config.extra).judgments is not None:
        return ["a file of judgments answers the same each time; give the files with --files instead"]
    if not build_benchmark(config).answered:
        return [f"judge variance needs a judge, and benchmark={config.benchmark['name']} has none"]
    return absent(config)


def measure_all(
    configs: Sequence[EvaluateConfig], repeats: int, files: Sequence[Sequence[str]], output: Path
) -> Table:
    """Measure the variance of each evaluation and of each set of files, keep it, and return a table."""
    read: dict[str, tuple[Spread, dict[str, Any]]] = {}
    for name, *paths in files:
        benchmark = build_benchmark(compose_evaluation([f"benchmark={name}"]))
        about = {"scale": benchmark.scale, "files": list(paths)}
        read[f"{name}-files"] = read_spread(benchmark, paths), about
    if len(read) < len(files):
        raise ValueError("--files names a benchmark twice: all its files go behind one --files")
    for key, (found, about) in read.items():  # all of them can be read
        keep(output, key, found, **about)
    spreads = {key: found for key, (found, _) in read.items()}
    for config in configs:
        key, spread_of_it, about = measure(config, repeats)
        spreads[key] = spread_of_it
        keep(output, key, spread_of_it, **about)
    return show(spreads)


def measure(config: EvaluateConfig, repeats: int) -> tuple[str, Spread, dict[str, Any]]:
    """Judge the answers of every run `repeats` times; return the key, the spread and what it is of.

    Each judging is kept, and none is paid for twice.
    """
    columns: list[list[float | None]] = [[] for _ in range(repeats)]
    with opened(config) as evaluation:
        judge = evaluation.judge
        for run in map(Path, config.runs):
            benchmark, samples = evaluation.answered(run)
            for repeat, column in enumerate(columns):
                judged = judge_samples(benchmark, samples, judge, repeat)
                column += [judgment.score for judgment in judged]
        judged_by = benchmark.decides or judge.identity()
        about = {"scale": benchmark.scale, "judge": benchmark.decides or judge.label, "judged_by": judged_by}
        about["runs"] = [_origin(Path(run)) for run in config.runs]
    return f"{config.benchmark['name']}-{about['judge']}", spread(columns, benchmark.middle), about


def _origin(run: Path) -> dict[str, Any]:
    view = view_run(run)
    git = {key: (view["git"] or {}).get(key) for key in ("commit", "dirty")}
    return {"run": run.name, "experiment": view.experiment, "seed": view["seed"], **git}


def read_spread(benchmark: Benchmark, paths: Sequence[str]) -> Spread:
    """Return the spread of published judgments in files. Raise ValueError for fewer than two, or other answers."""
    if len(paths) < 2:
        raise ValueError("--files takes a benchmark, then two or more files of judgments")
    tables = []
    for path in paths:
        rows = benchmark.published(Path(path))
        tables.append({(row["prompt_id"], row["answers"]): benchmark.score_of(row) for row in rows})
        if set(tables[-1]) != set(tables[0]):
            raise ValueError(f"{path} judges other answers than {paths[0]}; variance needs identical ones")
    return spread([[table[key] for key in tables[0]] for table in tables], benchmark.middle)


def keep(path: Path, key: str, found: Spread, **about: Any) -> None:
    """Put the spread of one benchmark into the figure's data; other benchmarks' stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**read_json(path, default={}), key: {**asdict(found), **about}})


def show(spreads: Mapping[str, Spread]) -> Table:
    header = ["judged twice", "n", "deviation", "same, %", "correlation", "flipped, %", "95 % interval alone"]
    rows = []
    for key, found in spreads.items():
        flips = number(None if found.flips is None else 100 * found.flips, 1)
        shares = [number(100 * found.same, 0), number(found.correlation, 3), flips]
        rows.append([key, str(found.n), number(found.deviation, 3), *shares, f"± {found.interval:.3f}"])
    return Table("judge_variance", "", header, rows)
