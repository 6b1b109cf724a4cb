"""How much a judge disagrees with itself: the same answers judged twice or more (the paper's figure 1).

Differences are in the judge's own unit: the preference of a prompt (0 to 1), or the score of a turn (1 to
10).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lab.answers.generate import Generator, open_generator
from lab.benchmarks.alpaca_eval import TOP_LOGPROBS, judge_duels, refuse_unparsable
from lab.benchmarks.alpaca_flow import duel_all
from lab.benchmarks.mt_bench import answer_questions, grade, gradings
from lab.benchmarks.mt_files import load_bench
from lab.benchmarks.settings import sampling_of
from lab.benchmarks.verifiable import answer_tasks
from lab.evaluation.evaluate import make_generator, read_config
from lab.evaluation.settings import EvaluateConfig, evaluation_errors
from lab.judging.judges import Judge, open_judge
from sgdpo.store import write_json
from sgdpo.world.checker import check

# Where a preference changes sides; a score of MT-Bench has no such place.
MIDDLE = {"alpaca_eval": 0.5}
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Spread:
    """Hold what repeated judgments of the same answers say.

    differences: later less earlier judgment, over every pair of repeats. correlation: mean test-retest
    correlation, None if a repeat is constant. flips: share of preferences that change sides, None for scores.
    interval: half the width of the 95 % interval that the judge's noise alone gives the mean of one judging.
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

    def row(self) -> dict[str, Any]:
        """Return the spread as it is written for the figure."""
        return dict(self.__dict__)


def spread(scores_RB: Sequence[Sequence[float | None]], middle: float | None) -> Spread:
    """Summarise repeated judgments, shape (repeats, answers). Raise ValueError below two repeats or answers.

    An answer that any repeat left unparsable is left out and counted; more than 5 % are refused.
    """
    table = np.array(
        [[np.nan if value is None else value for value in row] for row in scores_RB], dtype=float
    )
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"judge variance needs at least 2 judgments of 2 answers, got {table.shape}")
    known_B = np.isfinite(table).all(0)
    refuse_unparsable(int((~known_B).sum()), table.shape[1])
    table = table[:, known_B]
    pairs = list(combinations(range(len(table)), 2))
    differences = np.concatenate([table[j] - table[i] for i, j in pairs])
    within = table.var(axis=0, ddof=1).mean()
    return Spread(
        differences=differences.tolist(),
        correlation=_mean([_correlation(table[i], table[j]) for i, j in pairs]),
        flips=None
        if middle is None
        else float(np.mean([_flips(table[i], table[j], middle) for i, j in pairs])),
        interval=float(NORMAL_95 * np.sqrt(within / table.shape[1])),
        deviation=float(differences.std()),
        same=float(np.mean(differences == 0)),
        n=table.shape[1],
        repeats=len(table),
        unparsable=int((~known_B).sum()),
    )


def measure(config: EvaluateConfig, repeats: int) -> Spread:
    """Judge the answers of every run `repeats` times and summarise; each judging is kept, none is paid for twice."""
    if errors := evaluation_errors(config):
        raise ValueError("\n".join(errors))
    if config.benchmark.name == "lm_eval":
        raise ValueError("judge variance needs a judge: benchmark=alpaca_eval, mt_bench or verifiable")
    columns: list[list[float | None]] = [[] for _ in range(repeats)]
    cache = Path(config.cache)
    with open_generator(config.generator, cache) as opened, open_judge(config.judge, cache) as judge:
        if judge.judgments:
            raise ValueError(
                "a file of judgments answers the same each time; give the files with --files instead"
            )
        for run in map(Path, config.runs):
            generator = make_generator(config, run, read_config(run), opened)
            judged = _judge_repeatedly(config, run, generator, judge, repeats)
            for column, scores in zip(columns, judged, strict=True):
                column += scores
    return spread(columns, MIDDLE.get(config.benchmark.name))


def _judge_repeatedly(
    config: EvaluateConfig, run: Path, generator: Generator, judge: Judge, repeats: int
) -> list[list[float | None]]:
    benchmark, cache = config.benchmark, Path(config.cache)
    if benchmark.name == "verifiable":
        # The control: a judge without noise, asked again.
        data = read_config(run).data
        tasks, samples = answer_tasks(generator, data, sampling_of(benchmark), cache, benchmark.limit)
        return [
            [check(task, s.text).total for task, s in zip(tasks, samples, strict=True)]
            for _ in range(repeats)
        ]
    if benchmark.name == "alpaca_eval":
        duels, _, _ = duel_all(generator, benchmark, cache)
        top = TOP_LOGPROBS if benchmark.weighted else 0
        judged = [judge_duels(judge, duels, top_logprobs=top, repeat=n).preferences for n in range(repeats)]
        return [[None if value is None else value - 1 for value in values] for values in judged]
    folder = Path(benchmark.folder) if benchmark.folder else None
    bench = load_bench(folder, benchmark.reference_model, benchmark.limit)
    samples = answer_questions(generator, bench.questions, sampling_of(benchmark), cache)
    answers = [(first.text, second.text) for first, second in samples]
    return [grade(judge, gradings(bench, answers, repeat=n))[0] for n in range(repeats)]


def keep(path: Path, key: str, found: Spread) -> None:
    """Put the spread of one benchmark into the figure's data; other benchmarks' stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write_json(path, {**data, key: found.row()})


def show(spreads: dict[str, Spread]) -> Table:
    """Return a table of spreads, a benchmark a line."""
    table = Table(
        "judged twice", "n", "deviation", "same, %", "correlation", "flipped, %", "95 % interval alone"
    )
    for key, found in spreads.items():
        table.add_row(
            key,
            str(found.n),
            f"{found.deviation:.3f}",
            f"{100 * found.same:.0f}",
            "–" if found.correlation is None else f"{found.correlation:.3f}",
            "–" if found.flips is None else f"{100 * found.flips:.1f}",
            f"± {found.interval:.3f}",
        )
    return table


def _correlation(first_B: NDArray, second_B: NDArray) -> float | None:
    if np.ptp(first_B) == 0 or np.ptp(second_B) == 0:
        return None
    return float(np.corrcoef(first_B, second_B)[0, 1])


def _flips(first_B: NDArray, second_B: NDArray, middle: float) -> float:
    return float(np.mean((first_B - middle) * (second_B - middle) < 0))


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None
